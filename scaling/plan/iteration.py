"""Compiles the programs of an iteration of PPO or GRPO for devices that are not here: memory by model, time by part."""

import dataclasses
from typing import Any, NamedTuple

import jax

from scaling.align.rl import judges
from scaling.align.rl.iteration import Drawn, Iteration, Setting, inner, of_value
from scaling.align.rl.texts import Texts
from scaling.catalog.chips import Chip
from scaling.config import schema as cfg
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.plan import hlo, predict
from scaling.plan.compiled import compile_lowered, shard_bytes
from scaling.plan.decoding import compile_generation
from scaling.plan.request import Request
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule


class Planned(NamedTuple):
    """An iteration.

    Attributes:
        memory: model or program -> bytes a device.
        seconds: program -> of an iteration.
        tokens: of prompts and answers.
        cycles: of the compiler, in all.
        compile_seconds: that compiling took.
    """

    memory: dict[str, int]
    seconds: dict[str, float]
    tokens: int
    cycles: int
    compile_seconds: float


@dataclasses.dataclass
class _Programs:
    """Compiled one after the other."""

    chip: Chip
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: int = 0  # bytes a device that the program needs which needs most, beside the models
    cycles: int = 0
    compile_seconds: float = 0.0

    def add(self, name: str, lowered: Any, times: int, runs: int, factor: float = 1.0) -> None:
        """Compiles a program that runs so many times in an iteration, with loops of ``runs`` if their count varies."""
        compiled, text, seconds = compile_lowered(lowered)
        found = compiled.memory_analysis()
        results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
        self.needs(found.temp_size_in_bytes + results + found.generated_code_size_in_bytes)
        self.time(name, text, times, runs, factor)
        self.compile_seconds += seconds

    def needs(self, extra: int) -> None:
        self.extra = max(self.extra, extra)

    def time(self, name: str, text: str, times: int, runs: int, factor: float = 1.0) -> None:
        guess = predict.predict(hlo.parse(text), self.chip, runs)
        self.seconds[name] = self.seconds.get(name, 0.0) + times * factor * guess.seconds
        self.cycles += times * guess.cycles


def compile_iteration(config: cfg.Config, reward: cfg.Model | None, critic: bool, chip: Chip, devices: Any) -> Planned:
    """Compiles everything that an iteration runs with the sizes of a config.

    Args:
        config: resolved for these devices.
        reward: model of the reward; None = a function on the host, whose time is not counted.
        critic: PPO, with a value function of the reward's size, or of the policy's.
        chip: kind of the devices.
        devices: of a topology.

    Raises:
        DoesNotFit: there is not enough memory; the compiler's sentence.
    """
    mesh, rl, train = make_mesh(config.mesh, devices), config.rl, config.train
    value_model = dataclasses.replace(reward or config.model, outputs=1) if critic else None
    reward = None if reward is None else dataclasses.replace(reward, outputs=1)
    setting = Setting(config, mesh, config.model.vocab_size, (0, 1), 0)
    rows, length = train.batch_tokens // train.sequence_length, train.sequence_length
    programs, small = _Programs(chip), inner(config)
    parts, factor = BatchSchedule.from_config(train).max_microbatches, predict.calibration(chip).factor

    def whole(shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def placed(x: Any) -> Any:
        sharding = batch_sharding(mesh) if x.ndim == 3 else replicated(mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        iteration = Iteration(setting, lambda *_: None, value_model)  # type: ignore[arg-type]
        state, base = train_state.abstract_state(config, mesh), train_state.abstract_base(config, mesh)
        plain = dataclasses.replace(config, lora=cfg.Lora())
        reference = base or train_state.abstract_state(plain, mesh)["params"]
        policy = reference if base else state["params"]
        memory = {"policy": shard_bytes([state["params"], base]), "its optimizer": shard_bytes(state["optimizer"])}
        memory["its mean"] = shard_bytes(state["params"]) if rl.ema else 0
        memory["reference"] = 0 if base else shard_bytes(reference)
        ids, numbers = whole((rows, length), "int32"), whole((rows,))
        mask = whole((rows, length))
        texts = Texts(ids, ids, mask, whole((rows,), "int32"), whole((rows,), "bool"))
        runs = length - rl.response_tokens
        request = Request(batch_size=rows, prompt_tokens=runs, tokens=rl.response_tokens)
        generation = compile_generation(config, devices, request)
        programs.needs(sum(generation.memory.values()))
        programs.time("rollout, prompts", generation.prefill, 1, 1)
        programs.time("rollout, answers", generation.decode, 1, rl.response_tokens - 1)
        programs.compile_seconds += generation.seconds
        programs.add("log-probabilities, twice", iteration.sampler.log_probs.lower(policy, texts), 2, parts)
        values = None
        if reward is not None:
            judged = train_state.abstract_state(dataclasses.replace(plain, model=reward), mesh)["params"]
            memory["reward"] = shard_bytes(judged)
            programs.add("reward", judges.scorer(reward, config, 0, mesh).lower(judged, texts), 1, parts)
        critic_state = None
        if value_model is not None:
            critic_state = train_state.abstract_state(of_value(small, value_model), mesh)
            memory["value"] = shard_bytes(critic_state["params"])
            memory["its optimizer too"] = shard_bytes(critic_state["optimizer"])
            programs.add("values", iteration.values.lower(critic_state["params"], texts), 1, parts)
            values = mask
        drawn = Drawn(texts, whole((rows, rl.response_tokens), "int32"), numbers, mask, mask, numbers)
        answers, _, _ = jax.eval_shape(iteration.learned, drawn, values, whole(()))
        text = whole((parts, rows // parts, rl.pretraining_rows, length + 1), "int32") if rl.pretraining else None
        groups = whole((rows // rl.minibatches // rl.samples,), "int32")
        minibatch = jax.tree.map(placed, jax.eval_shape(iteration.take, answers, text, groups, whole(())))
        inside = BatchSchedule.from_config(small.train).max_microbatches
        scalars = (whole(()), whole((), "int32"))
        lowered: Any = iteration.policy_step
        lowered = lowered.lower(state, minibatch, *scalars, base=base)
        programs.add("update of the policy", lowered, iteration.updates, inside, factor)
        if critic_state is not None:
            lowered = iteration.value_step
            lowered = lowered.lower(critic_state, minibatch._replace(pretraining=None), *scalars)
            programs.add("update of the value function", lowered, iteration.updates, inside, factor)
    memory["what a program needs beside"] = programs.extra
    return Planned(memory, programs.seconds, rows * length, programs.cycles, programs.compile_seconds)
