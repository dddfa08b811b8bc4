"""Accepted run records with their provenance."""
