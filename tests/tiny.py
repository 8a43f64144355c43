"""Tiny configs, batches and meshes that the tests share, so that compiled programs are shared too."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.data.batch import Batch, of_sequences
from scaling.model import decoder
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule
from scaling.train.step import make_train_step

VOCAB = 50
EOT = 0


def model(**changes: Any) -> cfg.Model:
    base = cfg.Model(
        vocab_size=VOCAB,
        vocab_multiple=8,
        context_length=32,
        num_layers=2,
        d_model=32,
        num_heads=4,
        d_head=8,
        d_ff=128,
        attention_pattern=("dense", "banded"),
        band_width=4,
    )
    return dataclasses.replace(base, **changes)


# Switches of other families than GPT-3's, a few together: what each does alone, the parity with others shows.
SWITCHES: dict[str, dict[str, Any]] = {
    "llama": dict(
        norm_kind="rms", positions="rotary", gated=True, activation="silu", num_kv_heads=2, tied_embedding=False,
        qkv_bias=False, out_bias=False, mlp_bias=False,
    ),
    "neox": dict(positions="rotary", rotary=cfg.Rotary(dim=2), parallel="two_norms", activation="gelu"),
    "gptj": dict(
        positions="rotary", rotary=cfg.Rotary(dim=4, interleaved=True), parallel="one_norm", tied_embedding=False,
        logit_bias=True, qkv_bias=False, out_bias=False,
    ),
    "bloom": dict(positions="alibi", embedding_norm=True),
    "opt": dict(position_offset=2, norm="post", embedding_width=16, activation="relu"),
    "ctrl": dict(positions="sinusoidal", scaled_embedding=True, logit_bias=True),
    "qwen3": dict(positions="rotary", qk_norm=True, norm_kind="rms", num_kv_heads=1, gated=True, qkv_bias=False),
    "lamda": dict(positions="relative", relative_buckets=6, relative_distance=9, gated=True, norm_kind="rms"),
    "transformer_xl": dict(
        positions="transformer_xl", attention_pattern=("dense",), norm="post", num_kv_heads=2, activation="relu"
    ),
    "strided": dict(attention_pattern=("dense", "strided"), band_width=3),
    "yarn": dict(
        positions="rotary", rotary=cfg.Rotary(scaling="yarn", factor=4.0, original_length=8, theta=100.0),
        norm_bias=False, attention_scale=0.5,
    ),
    "mixtral": dict(
        norm_kind="rms", positions="rotary", activation="silu", num_kv_heads=2, qkv_bias=False, out_bias=False,
        experts=cfg.Experts(count=4, d_ff=24),
    ),
    "glam": dict(
        num_layers=4, gated=True, experts=cfg.Experts(count=8, every=2, gated=False, normalize=False, per_token=3)
    ),
}  # fmt: skip

COMPUTE = cfg.Compute(dtype="float32", loss_chunk=5)


def network(**changes: Any) -> cfg.Network:
    """A model and how it is computed (in float32); each change goes to the section that has the knob."""
    of_compute = {name: changes.pop(name) for name in list(changes) if hasattr(COMPUTE, name)}
    return cfg.Network(model(**changes), dataclasses.replace(COMPUTE, **of_compute))


def in_float32(model: cfg.Model) -> cfg.Network:
    return cfg.Network(model, COMPUTE)


def config(changes: dict[str, Any] | None = None, **train: Any) -> cfg.Config:
    """A resolved config: 8 sequences of 16 tokens a step; changes as of ``network``."""
    chosen = network(**(changes or {}))
    values = dict(tokens=10_000, sequence_length=16, batch_tokens=128, microbatch_sequences=8)
    return cfg.Config(
        model=chosen.model,
        compute=chosen.compute,
        train=cfg.Train(**(values | train)),
        optimizer=cfg.Optimizer(warmup_tokens=0),
    )


def parameters(model: cfg.Model, scale: float = 0.1) -> Any:
    """Parameters none of which is at its initial zero or one. NumPy draws them, so that nothing is compiled."""
    dice = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        return jax.numpy.asarray((path[-1].key == "gain") + scale * dice.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, decoder.abstract(model))


@functools.partial(jax.jit, static_argnums=0)
def logits(network: cfg.Network, params: Any, tokens: Any) -> jax.Array:
    """Of the whole forward pass."""
    module = decoder.merge(network, params)
    return module.logits(module(tokens))


def batch(
    step: int, microbatches: int = 1, sequences: int = 8, length: int = 16, separator: int | None = None
) -> Batch:
    """Random tokens, the same for every split into microbatches."""
    total = microbatches * sequences
    tokens = np.random.default_rng(step).integers(1, VOCAB, (total, length + 1)).astype(np.int32)
    tokens = tokens.reshape(microbatches, sequences, length + 1)
    return of_sequences(tokens, separator=separator)


def train(
    config: cfg.Config, steps: int, mesh: cfg.Mesh | None = None, devices: int = 1, lr: float = 1e-2
) -> tuple[list[float], Any]:
    """Losses of the first steps, and the final state, on a mesh over the first ``devices`` devices."""
    device_mesh = make_mesh(mesh or cfg.Mesh(), jax.devices()[:devices])
    schedule = BatchSchedule.from_config(config.train)
    count, size = schedule.max_microbatches, schedule.microbatch
    losses = []
    with jax.set_mesh(device_mesh):
        state = train_state.create_state(config, device_mesh)
        step_function = make_train_step(config, device_mesh, next_token(config))
        for step in range(steps):
            data = jax.device_put(batch(step, count, size), batch_sharding(device_mesh))
            state, metrics = step_function(state, data, lr, schedule.span(step)[1] // size)
            losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def train_on_one(steps: int) -> tuple[list[float], Any]:
    """``train`` of the plain config on one device, computed once for all tests that compare with it."""
    return train(config(), steps)
