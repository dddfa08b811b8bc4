"""One SQLite file a run; the only thing kept."""
