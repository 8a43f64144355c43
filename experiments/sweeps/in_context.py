"""In-context learning on a laptop: models of eight sizes, on book text and documents of examples without instructions.

python experiments/in_context/documents.py data/in_context
scaling sweep --config=experiments/sweeps/in_context.py
scaling evaluate runs/in_context/l4-* --tasks=experiments/in_context/tasks/code_books.toml --data=data/in_context \\
    --shots=0,1,2,4,8,few --no_prefix

(--no_prefix, because a training sequence begins with a document and not with an end-of-text token.)

Machine: 2 CPU cores, about half an hour.
For documents in another folder: --config=experiments/sweeps/in_context.py:DIRECTORY.
"""

from scaling.catalog import recipes
from scaling.sweep.plan import Shape, Sweep, tokens

# All shapes have the same depth; 13 thousand to 0.8 million parameters.
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
TOKENS = 4e6  # of each run, less than one epoch of the documents, so that none is memorised
BOOKS = 0.25  # fraction of the tokens that is ordinary text


def get_sweep(documents: str = "data/in_context") -> Sweep:
    config = recipes.small_bytes(band_width=8)  # one example; the context is one document
    config.data.train = ""
    config.data.mixture = (("books", BOOKS), (f"{documents}/train.jsonl", 1 - BOOKS))
    config.data.validation = f"{documents}/validation.jsonl"
    config.train.batch_tokens = 1024
    config.eval.tokens = 65_536
    return Sweep(base=config, shapes=SHAPES, budgets=[tokens(TOKENS)], warmup_fraction=0.1)
