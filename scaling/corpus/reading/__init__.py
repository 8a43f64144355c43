"""Reads files into documents, and names what cannot be read."""
