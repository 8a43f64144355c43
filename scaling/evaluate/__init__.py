"""Evaluation: tasks and prompts the GPT-3 way, scoring, metrics, contamination, bias.

``catalogue`` finds a task, ``task`` declares what it says, ``task_file`` reads it (TOML); ``readers``, ``fields`` and
``items`` turn files into items, ``synthetic`` makes some; ``prompts`` makes requests; none of these imports JAX. The
``evaluator`` answers them with a model, by likelihoods (``scoring``) and generated texts; ``in_loop`` during training.
"""
