"""Crash isolation: a parent that knows no torch, and children that run one check at a time."""
