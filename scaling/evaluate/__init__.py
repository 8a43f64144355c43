"""Evaluation: tasks and prompts the GPT-3 way, metrics, contamination, bias. Nothing here imports JAX.

``catalogue`` finds a task, ``task`` declares what it says, ``task_file`` reads it (TOML); ``readers``, ``fields`` and
``items`` turn files into items, ``synthetic`` makes some; ``prompts`` makes requests that a scorer can answer.
"""
