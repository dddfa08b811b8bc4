"""Does the candidate kernel compute the right bits on a checkpoint's own weights? Runs with --checkpoint only."""
