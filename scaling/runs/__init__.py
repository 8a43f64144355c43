"""The run directory, which is all that verbs share. This package imports no verb, so every verb may import it.

| what | where |
|---|---|
| names of the files, which folder is a run, other files beside runs | ``paths``, ``own_files`` |
| ``config.json`` | ``config_json`` |
| ``metrics.jsonl``, ``evals.jsonl`` and other files of lines | ``json_lines`` |
| all of these, for readers | ``run_directory`` |
| ``checkpoints/``, which one readers take, which run may resume from one | ``checkpoint``, ``choice``, ``lineage`` |
| parameters in checkpoints, a part at a time | ``stores`` |
| the model and the tokenizer | ``model``, ``tokenizer`` |
| the run that another begins with; what a reward model's numbers get | ``start``, ``bias`` |
| ``attempts/``: where the time went | ``attempts`` |
| ``bad_records-<process>.jsonl``: sequences that could not be read | ``bad_records`` |
| ``.lock`` | ``lock`` |
| what an experiment of several runs has measured, by name | ``measured`` |

Only ``checkpoint``, ``stores``, ``model``, ``bad_records`` and, when they write, ``config_json`` and ``measured``
import JAX.
"""
