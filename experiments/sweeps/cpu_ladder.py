"""isoFLOP curves of byte models on the embedded books, and a larger run to predict: a scaling law on a laptop.

    scaling sweep --config=experiments/sweeps/cpu_ladder.py --dry_run
    scaling sweep --config=experiments/sweeps/cpu_ladder.py
    scaling report runs/cpu_ladder

`make demo` runs its first four curves (cpu_ladder.py:demo). cpu_ladder.py:llama trains the same curves with LLaMA's
block in the place of GPT-3's: RMSNorm, rotary positions, gated MLPs two thirds as wide, no biases.

Machine: 2 CPU cores, about an hour for all of it. Losses: 2.25 nats a byte at 2e10 FLOPs to 1.31 at 6e13;
docs/results/cpu_ladder has the law, and what was tried to make the runs follow one.
"""

import dataclasses

from scaling.catalog import families, recipes
from scaling.sweep.plan import Shape, Sweep, isoflop
from scaling.sweep.rules import power

# All shapes have the same depth, so that the law depends on width alone. Parameters about double from one shape to the
# next, from 13 thousand to 1.9 million.
SHAPES = (
    Shape(4, 12, 1),
    Shape(4, 16, 1),
    Shape(4, 24, 2),
    Shape(4, 32, 2),
    Shape(4, 48, 3),
    Shape(4, 64, 4),
    Shape(4, 96, 6),
    Shape(4, 128, 8),
    Shape(4, 192, 12),
)

# Training FLOPs of the isoFLOP curves, two in each decade.
BUDGETS = (2e10, 6.3e10, 2e11, 6.3e11, 2e12, 6.3e12, 2e13)
PARTS = {"smoke": 2, "demo": 4, "full": 7}  # number of curves
# The run that is predicted from the others: three times their largest budget, 1.9M parameters, one epoch.
LARGEST = isoflop(6e13, between=(2.5, 5))


def get_sweep(part: str = "full") -> Sweep:
    if part not in (*PARTS, "llama"):
        raise ValueError(f"{part!r} is not a part of this ladder; one of {', '.join(PARTS)}, llama")
    budgets = [isoflop(*BUDGETS[: PARTS.get(part)], between=(0.75, 100))]
    if part == "full":
        budgets.append(LARGEST)
    config = recipes.small_bytes(band_width=4)
    config.eval.tokens = 131_072
    shapes = SHAPES
    if part == "llama":
        config.workdir = "runs/llama_ladder"
        config.model.update(families.LLAMA | {"tied_embedding": True})  # the block alone
        config.optimizer.peak_lr = 3.5e-3  # between the best at widths 24 and 48, of 2.5e-3 to 1e-2
        # A gate is a third matrix: at 8/3 of d_model, in multiples of 4, the MLP has as many parameters as with two.
        shapes = tuple(dataclasses.replace(shape, d_ff=4 * round(2 / 3 * shape.d_model)) for shape in SHAPES)
    return Sweep(
        base=config,
        shapes=shapes,
        budgets=budgets,
        batch_tokens=power(0.5, 0.5, of="tokens", between=(256, 4096)),
        warmup_fraction=0.1,
    )
