"""Layouts of the GPT-3 sizes for TPU slices, chosen by compiling them (docs/benchmarks.md has memory and step time).

Those of 125M and 350M for v6e and v7x were chosen by the estimate from shapes.
"""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a size is laid out on the chips of a slice.

    Attributes:
        microbatch_sequences: sequences of 2,048 tokens in a microbatch, over all chips.
        remat: what the backward pass recomputes.
        fsdp: shards of parameters and optimizer state; the remaining factor of the chips is replicas.
        tensor: shards of each matrix product.
    """

    microbatch_sequences: int
    remat: str
    fsdp: int = 1
    tensor: int = 1

    def apply(self, config: ConfigDict) -> None:
        """Sets the knobs. A batch ramp begins with at least one microbatch, so that no chip is idle."""
        config.mesh.data = -1
        config.mesh.fsdp, config.mesh.tensor = self.fsdp, self.tensor
        config.compute.remat = self.remat
        config.train.microbatch_sequences = self.microbatch_sequences
        tokens = self.microbatch_sequences * config.model.context_length
        config.train.ramp_start_tokens = max(config.train.ramp_start_tokens, tokens)


# size -> topology -> layout
LAYOUTS: dict[str, dict[str, Layout]] = {
    "125m": {
        "v5e:2x4": Layout(64, "projections"),
        "v5p:2x2x1": Layout(64, "none"),
        "v6e:2x2": Layout(64, "projections"),
        "v7x:2x2x1": Layout(128, "projections"),
    },
    "350m": {
        "v5e:4x4": Layout(64, "projections", fsdp=16),
        "v5p:2x2x2": Layout(64, "none", fsdp=8),
        "v6e:2x4": Layout(64, "projections", fsdp=8),
        "v7x:2x2x1": Layout(128, "projections", fsdp=8),
    },
    "760m": {
        "v5e:4x4": Layout(64, "projections", fsdp=16),
        "v5p:2x2x2": Layout(64, "projections", fsdp=8),
        "v6e:2x4": Layout(64, "projections", fsdp=8),
        "v7x:2x2x2": Layout(128, "projections", fsdp=16),
    },
    "1300m": {
        "v5e:4x8": Layout(128, "projections", fsdp=32),
        "v5p:2x2x4": Layout(128, "projections", fsdp=16),
        "v6e:4x4": Layout(128, "projections", fsdp=16),
        "v7x:2x2x2": Layout(128, "projections", fsdp=16),
    },
    "2700m": {
        "v5e:8x8": Layout(128, "projections", fsdp=64),
        "v5p:2x4x4": Layout(256, "projections", fsdp=32),
        "v6e:4x8": Layout(128, "projections", fsdp=32),
        "v7x:2x2x4": Layout(256, "projections", fsdp=32),
    },
    "6700m": {
        "v5e:8x16": Layout(256, "projections", fsdp=128),
        "v5p:4x4x4": Layout(512, "projections", fsdp=64),
        "v6e:8x8": Layout(256, "projections", fsdp=64),
        "v7x:2x4x4": Layout(512, "projections", fsdp=64),
    },
    "13b": {
        "v5e:16x16": Layout(512, "qkv+hidden:34", fsdp=256),
        "v5p:4x4x8": Layout(512, "projections", fsdp=128),
        "v6e:8x16": Layout(256, "projections", fsdp=128),
        "v7x:4x4x4": Layout(512, "projections", fsdp=128),
    },
    "175b": {
        "v5p:8x8x8": Layout(512, "projections", fsdp=128, tensor=4),
        "v5p:8x8x16": Layout(512, "projections", fsdp=256, tensor=4),
        "v6e:16x16": Layout(256, "full", fsdp=64, tensor=4),
        "v7x:4x8x8": Layout(512, "projections", fsdp=128, tensor=4),
    },
}


def find(size: str, topology: str) -> Layout:
    """The layout of a size on a topology.

    Raises:
        ValueError: there is none.
    """
    known = LAYOUTS[size]
    if topology not in known:
        raise ValueError(
            f"no layout of {size} for {topology!r}; there are some for {', '.join(known)} (for others give "
            "config.mesh, config.compute.remat and config.train.microbatch_sequences; scaling plan --search finds them)"
        )
    return known[topology]
