"""Dialogues: control tokens, templates, records, and the rows that a model is trained on."""
