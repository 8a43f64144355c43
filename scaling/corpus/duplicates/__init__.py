"""Equal and nearly equal documents."""
