"""Token directories, text and the manifest that training reads."""
