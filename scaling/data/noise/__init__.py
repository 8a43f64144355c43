"""Objectives of pre-training that change the text, and the rows that they make of it."""
