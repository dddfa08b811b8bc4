"""One folder an eval; nothing here yet."""
