"""Compiles the programs that continue prompts, ``scaling.generate.decode``, for devices that are not here."""

import dataclasses
import functools
from typing import Any

import jax

from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.generate import decode
from scaling.generate.generator import batch_shape, bucket
from scaling.generate.sampling import Sampling, row_keys, rules
from scaling.model import kv_cache
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import replicated
from scaling.plan.compiled import compile_lowered, shard_bytes
from scaling.plan.request import Request


@dataclasses.dataclass(frozen=True)
class Generation:
    """Both programs that continue a batch of prompts.

    Attributes:
        prefill: text of the one that reads the prompts and chooses the first token.
        decode: text of the other, a loop over the other tokens.
        rows: texts of a batch, with those that fill it up.
        memory: part -> bytes a device, at the fuller of both.
        read: bytes a device of weights and cache, without padding: what each token must read.
        seconds: that compiling took.
    """

    prefill: str
    decode: str
    rows: int
    memory: dict[str, int]
    read: int
    seconds: float


def compile_generation(config: cfg.Config, devices: list[Any], request: Request) -> Generation:
    """Compiles the programs that ``scaling generate`` runs, drawing from the whole softmax.

    Args:
        config: resolved for these devices.
        devices: of a topology or of this machine.
        request: batch and lengths; they are rounded up as there.

    Raises:
        DoesNotFit: there is not enough memory; the compiler's sentence.
        ValueError: prompt and new tokens exceed the context.
    """
    model, network = config.model, config.network
    if model.encoder_layers:
        raise refused("model.encoder_layers", model.encoder_layers, "must be 0 for --step=generate")
    if request.prompt_tokens + request.tokens > model.context_length:
        raise ValueError(
            f"prompts of {request.prompt_tokens} tokens and {request.tokens} new ones exceed the model's context of "
            f"{model.context_length}"
        )
    mesh = make_mesh(config.mesh, devices)
    static, dials = rules(Sampling(tokens=request.tokens), model.vocab_size, eot=0)
    rows, slots = batch_shape(request.batch_size, request.prompt_tokens, model.context_length, mesh)
    whole = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    with jax.set_mesh(mesh):
        params, starts = kv_cache.abstract_layers(network, mesh), whole((rows,), "int32")
        keys = whole((rows,), jax.eval_shape(functools.partial(row_keys, 0), starts, starts).dtype)
        program = decode.Program(network, static, bucket(request.tokens))
        batch: Any = decode.Rows(whole((rows, slots), "int32"), starts, keys)  # type: ignore[arg-type]
        arguments = (params, dials, batch)
        prefill, first, first_seconds = compile_lowered(decode.start.lower(program, *arguments))
        # The loop takes the state as the first program leaves it.
        state = jax.tree.map(
            lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
            jax.eval_shape(functools.partial(decode.start, program), *arguments),
            prefill.output_shardings,
        )
        loop, second, seconds = compile_lowered(decode.proceed.lower(program, *arguments, state, whole((), "int32")))
    weights, cached = shard_bytes(params), shard_bytes(state.cache)
    before, after = prefill.memory_analysis(), loop.memory_analysis()
    # Arrays are padded in memory: the cache is what the loop takes and the first program does not.
    held = before.argument_size_in_bytes
    padded = max(cached, after.argument_size_in_bytes - held)
    memory = {
        "params": weights,
        "key-value cache": padded,
        "temporary": max(_bytes(before), _bytes(after)) - weights - padded,
    }
    return Generation(first, second, rows, memory, weights + cached, first_seconds + seconds)


def _bytes(found: Any) -> int:
    """All that a program needs on a device."""
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes + found.generated_code_size_in_bytes
