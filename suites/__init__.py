"""Thin pytest files over the package: parameters and one call each; no helpers, no tolerances."""
