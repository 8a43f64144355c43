"""Evaluation the GPT-3 way: tasks and prompts, scores, contamination, bias.

``tasks`` says what a task is and turns it into requests, without JAX. ``scoring`` answers requests with a model and
computes metrics. ``constraints`` verifies what an answer must satisfy. ``harness`` runs tasks of lm-evaluation-harness,
``contamination`` searches training text for items, ``bias`` runs the probes of GPT-3's section 6.2.
"""
