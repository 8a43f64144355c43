"""isoFLOP curves of GPT-3's shapes, 125M to 6.7B, learning rate and batch interpolated from its table 2.1.

    scaling sweep --config=experiments/sweeps/gpt3_isoflop.py --dry_run --device='TPU v5p' --devices=256
    scaling sweep --config=experiments/sweeps/gpt3_isoflop.py --config.data.train='gs://BUCKET/text-*.jsonl.gz'
    scaling report runs/gpt3_isoflop

Machine: accelerators; 6,500 hours of one TPU v5p at 40 % MFU, so about 26 hours of 256. Expected loss: not known;
none of these runs has been made with this code.
"""

from scaling.catalog import recipes
from scaling.catalog.sizes import GPT3
from scaling.sweep.plan import Shape, Sweep, isoflop
from scaling.sweep.rules import gpt3_batch_tokens, gpt3_peak_lr

SIZES = ("125m", "350m", "760m", "1300m", "2700m", "6700m")


def get_sweep() -> Sweep:
    config = recipes.gpt3("125m", fsdp=1, remat="projections")
    config.train.ramp_tokens = 0  # the ramp of a 300B-token run would last longer than these runs
    config.train.microbatch_sequences = 8
    config.eval.tokens = 2**22
    return Sweep(
        base=config,
        shapes=[Shape.of(GPT3[name]) for name in SIZES],
        budgets=[isoflop(1e19, 3e19, 1e20, 3e20, 1e21, between=(2, 120))],
        peak_lr=gpt3_peak_lr,
        batch_tokens=gpt3_batch_tokens,
        warmup_fraction=0.01,
    )
