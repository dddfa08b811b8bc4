"""From a command to a finished eval run, and from two runs to a verdict."""
