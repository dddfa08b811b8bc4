"""Pure functions from records to terminal text."""
