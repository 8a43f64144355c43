"""From raw documents to clean text in known languages."""
