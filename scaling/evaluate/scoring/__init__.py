"""Answers of a model to requests, metrics with standard errors, records."""
