"""Intervals, paired comparisons, exact tests, sequential looks, missing data and power; numpy, scipy and the standard library only.

Everything is a fraction in 0..1; percentage points belong to the texts that others write. Arrays of right answers have
the questions on their last axis, and whatever lies before it (simulated runs, looks) is broadcast.
"""
