"""In-context learning on a laptop: models of eight sizes, on book text and documents of solved, unnamed tasks.

python experiments/in_context/documents.py data/in_context
scaling sweep --config=experiments/sweeps/in_context.py
scaling evaluate runs/in_context/l4-* --tasks=experiments/in_context/tasks/code_books.toml --data=data/in_context \\
    --shots=0,1,2,4,8,few --no_prefix

(--no_prefix, because a training sequence begins with a document and not with an end-of-text token.)

Machine: 2 CPU cores, about half an hour. Documents elsewhere: --config=experiments/sweeps/in_context.py:DIRECTORY.
"""

from scaling.config import default_config
from scaling.sweep.plan import Shape, Sweep, tokens

# One depth, 13 thousand to 0.8 million parameters.
SHAPES = (
    Shape(4, 12, 1),
    Shape(4, 16, 1),
    Shape(4, 24, 2),
    Shape(4, 32, 2),
    Shape(4, 48, 3),
    Shape(4, 64, 4),
    Shape(4, 96, 6),
    Shape(4, 128, 8),
)
TOKENS = 4e6  # of each run: the documents less than once, so that what is learned is not by heart
BOOKS = 0.25  # part of the tokens that is ordinary text


def get_sweep(documents: str = "data/in_context") -> Sweep:
    config = default_config()
    config.data.tokenizer = "bytes"
    config.data.train = ""
    config.data.mixture = (("books", BOOKS), (f"{documents}/train.jsonl", 1 - BOOKS))
    config.data.validation = f"{documents}/validation.jsonl"
    config.model.context_length = 128  # a document
    # As in cpu_ladder.py: a narrow band in every other layer, here of one example, and muP.
    config.model.attention_pattern = ("banded", "dense")
    config.model.band_width = 8
    config.model.compute_dtype = "float32"  # CPUs have no fast bfloat16
    config.model.parametrization = "mup"
    config.model.base_width = 64
    config.model.init_std = 0.08
    config.train.batch_tokens = 1024
    config.train.loss_chunk = 0  # the vocabulary is small
    config.optimizer.peak_lr = 5e-3
    config.eval.tokens = 65_536
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 1
    config.log.tensorboard = False
    return Sweep(base=config, shapes=SHAPES, budgets=[tokens(TOKENS)], warmup_fraction=0.1)
