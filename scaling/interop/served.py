"""A model with its tokenizer, ready to be used: what ``generate`` and ``evaluate`` begin with."""

import dataclasses
import os
from typing import Any

import jax
from etils import epath

from scaling.config import schema as cfg
from scaling.config.resolve import check_int8
from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.data.tokenizer import Tokenizer
from scaling.interop.logits import load_model
from scaling.interop.tokenizer_files import own_tokenizer
from scaling.model import decoder
from scaling.model.kv_cache import in_8_bits
from scaling.parallel import distributed
from scaling.parallel.mesh import axis_size, make_mesh, one_device
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_checkpoint
from scaling.runs.paths import TEMPLATE


@dataclasses.dataclass(frozen=True)
class Served:
    """A model, its tokenizer and where it lies.

    Attributes:
        network: resolved, with the compute dtype that was asked for.
        params: float32, on the mesh as in training; where weights are in 8 bits, the numbers that these stand for.
        words: tokenizer.
        mesh: of one device, unless another was asked for.
        step: of the checkpoint; None of a Hugging Face folder.
        tokens: that the model was trained on by then; None of a Hugging Face folder.
        template: the chat template that the model was trained with, where it is not the tokenizer's; else empty.
    """

    network: cfg.Network
    params: decoder.Params
    words: Tokenizer
    mesh: jax.sharding.Mesh
    step: int | None
    tokens: int | None
    template: str = ""

    def chat(self, template: str = "") -> Chat:
        """Dialogues by the template that the model was trained with, or by another one, the text ``template``.

        Raises:
            ValueError: as ``Chat``.
        """
        return Chat(self.words, template or self.template)


def load_served(
    model: str | os.PathLike[str],
    tokenizer_name: str | None = None,
    axes: str = "",
    dtype: str = "float32",
    int8: str = "none",
) -> Served:
    """Loads a run directory (its newest whole checkpoint) or a Hugging Face folder.

    Args:
        model: path.
        tokenizer_name: gpt2, bytes, books or a path; None = the run's, or the folder's own files.
        axes: devices, as in ``fsdp=2,tensor=4``; empty = one device.
        dtype: of the matrix products.
        int8: what is in 8 bits, a value of ``compute.decode_int8``.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a model, tokenizer or mesh that cannot be used, another tokenizer than the run's, or weights in 8
            bits of a model whose products have their own 8 bits.
    """
    sizes = _mesh(axes)
    if sizes is not None:
        distributed.initialize(cfg.Distributed(), sizes.cpu_devices)
    values = read_config_json(model)
    if "config" in values:
        words = run_tokenizer.load(model, values, tokenizer_name)
    else:
        words = tokenizer.load(tokenizer_name or own_tokenizer(model))
    mesh = one_device() if sizes is None else _make_mesh(axes, sizes)
    step = tokens = None
    if "config" in values:
        _check_mesh(cfg.freeze(values["config"]).model, mesh)
        found = load_checkpoint(model, mesh)
        network, params, step, tokens = found.network, found.params, found.step, found.tokens
    else:
        network, params = load_model(model)
        _check_mesh(network.model, mesh)
        params = jax.device_put(params, decoder.shardings(network.model, mesh))
    if words.vocab_size > network.model.vocab_size:
        raise ValueError(
            f"tokenizer {words.name!r} has {words.vocab_size} tokens, but {os.fspath(model)} only "
            f"{network.model.vocab_size}; it must be the one that the model was trained with"
        )
    compute = dataclasses.replace(network.compute, dtype=dtype, decode_int8=int8)
    network = cfg.Network(network.model, compute)
    check_int8(compute, f"--int8={int8}: in {os.fspath(model)}, ")
    if compute.int8_weights:
        params = in_8_bits(network, params, mesh)
    kept = epath.Path(model) / TEMPLATE
    template = kept.read_text(encoding="utf-8") if "config" in values and kept.exists() else ""
    return Served(network, params, words, mesh, step, tokens, template)


def load_decoder(
    model: str | os.PathLike[str],
    tokenizer_name: str | None = None,
    axes: str = "",
    dtype: str = "float32",
    sources: bool | None = False,
    int8: str = "none",
) -> Served:
    """As ``load_served``, for what continues texts.

    An encoder is a ValueError, too, and so is a decoder with an encoder beside it, unless there are ``sources`` for it;
    None = either is served.
    """
    served = load_served(model, tokenizer_name, axes, dtype, int8)
    if not served.network.model.causal:
        raise ValueError(
            f"{os.fspath(model)} is an encoder, which continues no texts; see `scaling fill` and `scaling embed`"
        )
    if sources is None:
        return served
    if served.network.model.encoder_layers and not sources:
        raise ValueError(f"{os.fspath(model)} writes behind an encoder; see `scaling generate --source`")
    if sources and not served.network.model.encoder_layers:
        raise ValueError(f"{os.fspath(model)} has no encoder that reads a --source; give --prompt")
    return served


def _mesh(text: str) -> cfg.Mesh | None:
    """``fsdp=2,tensor=4`` as a config; None for nothing."""
    if not text:
        return None
    known = [field.name for field in dataclasses.fields(cfg.Mesh) if field.name not in ("stage", "shard_optimizer")]
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis == "stage":
            raise ValueError(
                f"--mesh={text}: only training has a pipeline; give the devices of stage to fsdp or tensor"
            )
        if axis not in known or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"--mesh={text}: {part!r} must be AXIS=DEVICES, with AXIS one of {', '.join(known)}")
        sizes[axis] = int(size)
    return dataclasses.replace(cfg.Mesh(), **sizes)


def _make_mesh(text: str, sizes: cfg.Mesh) -> jax.sharding.Mesh:
    count = jax.device_count()
    try:
        axis_size(sizes, count)
    except ValueError:
        hint = "; cpu_devices=N makes N of this machine" if jax.devices()[0].platform == "cpu" else ""
        raise ValueError(f"--mesh={text} does not make the {count} devices that there are{hint}") from None
    return make_mesh(sizes)


def _check_mesh(config: cfg.Model, mesh: jax.sharding.Mesh) -> None:
    shards, experts = dict(mesh.shape), config.experts.count
    if shards["expert"] > 1 and (not experts or experts % shards["expert"]):
        raise ValueError(
            f"--mesh: expert={shards['expert']} must divide the experts of the model, of which it has {experts}"
        )
    shards["fsdp*context"] = shards["fsdp"] * shards["context"]
    shards["fsdp*expert*context"] = shards["fsdp*context"] * shards["expert"]
    for axis, knob in (
        ("fsdp", "d_model"),
        ("fsdp*context", "d_model"),
        ("fsdp*expert*context", "d_model"),
        ("fsdp*expert*context", "d_embedding"),
        ("tensor", "num_heads"),
        *([("tensor", "kv_heads")] if config.kv_heads > 1 else []),
        ("tensor", "d_ff"),
        ("tensor", "d_expert"),
        ("tensor", "padded_vocab"),
    ):
        size, features = shards[axis], getattr(config, knob)
        if features % size:
            raise ValueError(f"--mesh: {axis}={size} must divide the model's {knob} of {features}")
