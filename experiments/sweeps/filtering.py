"""What filtering of a crawl is worth, and what it costs where the filtered text must be repeated.

    scaling sweep --config=experiments/sweeps/filtering.py:FOLDER
    scaling sweep --config=experiments/sweeps/filtering.py:FOLDER,mixtures
    scaling fit runs/filtering/*part*crawl runs/filtering/*best100* --form=data_constrained

experiments/data/filtering.py builds the corpora, runs/filtering-FOLDER-*, and FOLDER/held_out.jsonl.gz is what all
models are validated on. The first sweep trains three sizes for three lengths on five levels of filtering of the same
crawl and on two random parts of it. The second trains one size with three seeds on the raw mixture and on the built
one. The fit is of the runs that differ only in how often text is repeated.

Machine: one CPU core, about an hour for both. docs/results/filtering has the results.
"""

from scaling.catalog import recipes
from scaling.config.files import run_name
from scaling.sweep.plan import Shape, Sweep, tokens
from scaling.sweep.rules import power

# Of the ladder of byte models, with 12, 38 and 132 thousand parameters.
SHAPES = (Shape(4, 12, 1), Shape(4, 24, 2), Shape(4, 48, 3))
LENGTHS = (2e5, 8e5, 1.6e6)  # the last is nearly an epoch of the whole crawl, and 13.5 of its best 6.25 %
LEVELS = ("best100", "best50", "best25", "best12.5", "best6.25", "part25", "part6.25")
MIXTURES = ("raw", "built")


def get_sweep(arguments: str = "corpus") -> Sweep:
    folder, _, part = arguments.partition(",")
    if part not in ("", "levels", "mixtures"):
        raise ValueError(f"{part!r} must be levels or mixtures")
    builds = {name: f"runs/{run_name(f'filtering:{folder},{name}')}" for name in (*LEVELS, *MIXTURES)}
    config = recipes.small_bytes(band_width=4)
    config.mesh.cpu_devices = 1
    config.data.validation = f"{folder}/held_out.jsonl.gz"
    config.eval.tokens = 131_072
    config.workdir = "runs/filtering_mixtures" if part == "mixtures" else "runs/filtering"
    shapes, lengths = SHAPES, LENGTHS
    grid: dict[str, tuple[str | int, ...]] = {"data.train": tuple(f"{builds[level]}/tokens/crawl" for level in LEVELS)}
    if part == "mixtures":
        shapes, lengths = SHAPES[-1:], LENGTHS[-1:]
        grid = {"data.train": tuple(builds[mixture] for mixture in MIXTURES), "seed": (0, 1, 2)}
    return Sweep(
        base=config,
        shapes=shapes,
        budgets=[tokens(*lengths)],
        batch_tokens=power(0.5, 0.5, of="tokens", between=(256, 4096)),
        warmup_fraction=0.1,
        evaluations=1,
        grid=grid,
    )
