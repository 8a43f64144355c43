"""A sweep as data: shapes times budgets, with rules for learning rate and batch, expanded into a config for each run.

An experiment file describes a sweep by ``get_sweep()``; see ``experiments/sweeps/``. Nothing here needs JAX.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from scaling.catalog import flops
from scaling.catalog.sizes import Parameters, Size, parameters
from scaling.config import schema as cfg
from scaling.config.files import apply_overrides
from scaling.config.kind import TRAINING
from scaling.config.refusal import shown
from scaling.config.resolve import MOST_STEPS, resolve
from scaling.data import tokenizer
from scaling.evaluate.tasks.knobs import check_tasks
from scaling.object_store import is_remote

_ROUNDING = 0.1  # rounding to whole batches may change a length by this fraction
_SHAPE_KNOBS = ("num_layers", "d_model", "num_heads", "d_head", "d_ff")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Depth and width of one model; ``d_head`` 0 = d_model / num_heads, ``d_ff`` 0 = 4 d_model."""

    num_layers: int
    d_model: int
    num_heads: int
    d_head: int = 0
    d_ff: int = 0

    @classmethod
    def of(cls, size: Size) -> "Shape":
        """The shape of a published size."""
        return cls(size.num_layers, size.d_model, size.num_heads, size.d_head)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The arguments of rules and budgets: the model of a run, and for rules also its length.

    Attributes:
        params: numbers of parameters by each convention.
        flops_per_token: training FLOPs of a token, attention and logits included (``scaling.catalog.flops``).
        tokens: length of the run; 0 while the budget is being decided.
    """

    params: Parameters
    flops_per_token: float
    tokens: float = 0

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens


Budget = Callable[[Scale], Sequence[float]]  # tokens of each run of a model
Rule = Callable[[Scale], float]


def tokens(*lengths: float) -> Budget:
    """A grid: each model for each of these numbers of tokens."""
    return lambda scale: lengths


def tokens_per_parameter(*ratios: float) -> Budget:
    """A ladder: D = ratio * N; about 20 was optimal in arXiv 2203.15556, GPT-3 had 1.7.

    N is the active parameters: all without experts, and with experts those that a token uses. FLOPs follow these, so a
    model with experts has about the budget of the dense model that costs as much for each token.
    """
    return lambda scale: [ratio * scale.params.active for ratio in ratios]


def isoflop(*budgets: float, between: tuple[float, float] = (0, math.inf)) -> Budget:
    """Each model for each budget of training FLOPs, if its tokens per active parameter lie ``between`` two ratios.

    Arguments choose the sizes around each budget's optimum (approach 2 of arXiv 2203.15556): a curve needs sizes on
    both sides of it.
    """

    def lengths(scale: Scale) -> list[float]:
        found = [budget / scale.flops_per_token for budget in budgets]
        return [d for d in found if between[0] <= d / scale.params.active <= between[1]]

    return lengths


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: each shape with each length that a budget gives it, times the grid.

    Attributes:
        base: what all runs share, from ``default_config()``; its workdir is the folder of the sweep.
        shapes: the models.
        budgets: functions from a model to lengths; all are used, and equal lengths count once.
        peak_lr: rule for the learning rate; None = that of base (with muP one suits every width).
        batch_tokens: rule for the batch, rounded to a power of two of sequences; None = that of base.
        warmup_fraction: warm-up as a fraction of each run; None = the tokens of base.
        evaluations: validations in a run, at equal distances.
        grid: knob (``optimizer.peak_lr``, ``seed``) -> values; each combination is a run of its own.
    """

    base: ConfigDict
    shapes: Sequence[Shape]
    budgets: Sequence[Budget]
    peak_lr: Rule | None = None
    batch_tokens: Rule | None = None
    warmup_fraction: float | None = None
    evaluations: int = 10
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    @property
    def sets(self) -> dict[str, str]:
        """Maps the knobs that differ from run to run to the field that sets them."""
        found = {f"config.model.{knob}": "shapes" for knob in _SHAPE_KNOBS}
        found |= {"config.train.tokens": "budgets", "config.eval.every_steps": "evaluations"}
        if self.peak_lr is not None:
            found["config.optimizer.peak_lr"] = "peak_lr"
        if self.batch_tokens is not None:
            found["config.train.batch_tokens"] = "batch_tokens"
        if self.warmup_fraction is not None:
            found["config.optimizer.warmup_tokens"] = "warmup_fraction"
        return found | {f"config.{knob}": "grid" for knob in self.grid}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its resolved config (with the mesh not resolved yet), its scale and its steps."""

    name: str
    config: cfg.Config
    scale: Scale

    @property
    def steps(self) -> int:
        return self.config.train.tokens // self.config.train.batch_tokens


def single(config: cfg.Config, name: str) -> Run:
    """The run of one config, resolved as the runs of a sweep are.

    Raises:
        ValueError: an impossible config.
    """
    vocab_size = config.model.vocab_size or tokenizer.load(config.data.tokenizer).vocab_size
    config = _resolved(config, vocab_size, name)
    return Run(name, config, dataclasses.replace(_scale(config), tokens=config.train.tokens))


def _resolved(config: cfg.Config, vocab_size: int, name: str | None = None) -> cfg.Config:
    """The config as a training will resolve it; refuses everything that can be refused before it begins."""
    config = resolve(config, vocab_size=vocab_size, name=name)
    check_tasks(config)
    return config


def plan(sweep: Sweep, overrides: Sequence[str] = (), name: str = "sweep", local: bool = True) -> list[Run]:
    """Expands a sweep into its runs, in the order of their FLOPs.

    Args:
        sweep: from ``get_sweep()``.
        overrides: ``--config.a.b=value`` for all runs, as ``config.files.split_arguments`` returns them.
        name: of the sweep; its runs are in ``runs/<name>/`` unless ``config.workdir`` is set.
        local: the runs' folder must be local.

    Raises:
        ValueError: an override of a knob that the sweep sets, an impossible config (named with its run), no run, or
            two of the same name.
    """
    _check(sweep, overrides)
    base = apply_overrides(sweep.base, overrides)
    vocab_size = base.model.vocab_size or tokenizer.load(base.data.tokenizer).vocab_size
    folder = base.workdir or f"runs/{name}"
    if local and is_remote(folder):
        raise ValueError(
            f"config.workdir={folder}: the folder of a sweep that is launched here must be local; `scaling sweep` "
            "takes one in an object store"
        )
    runs: dict[str, Run] = {}
    same: dict[cfg.Config, str] = {}
    for shape, length, variant in _combinations(sweep, base, vocab_size):
        run = _run(sweep, base, shape, length, variant, folder, vocab_size)
        key = dataclasses.replace(run.config, workdir="")
        if run.name in runs:
            raise ValueError(f"two runs of the sweep are named {run.name}; their lengths or grid values are too close")
        if key in same:
            raise ValueError(
                f"{same[key]} and {run.name} are the same run: a shape is given twice, or both lengths are "
                f"{run.config.train.tokens} tokens in whole batches of {run.config.train.batch_tokens}"
            )
        runs[run.name], same[key] = run, run.name
    if not runs:
        raise ValueError("the sweep has no runs: no budget gives any of its shapes a length")
    return sorted(runs.values(), key=lambda run: run.scale.flops)


def _check(sweep: Sweep, overrides: Sequence[str]) -> None:
    """Refuses values of single fields."""
    _check_types(sweep)
    for override in overrides:
        knob = override.removeprefix("--").split("=", 1)[0]
        if knob in sweep.sets:
            raise ValueError(f"{knob} differs from run to run, by the sweep's {sweep.sets[knob]}; change that instead")
    if sweep.warmup_fraction is not None and not 0 <= sweep.warmup_fraction <= 1:
        raise ValueError(f"the sweep's warmup_fraction={sweep.warmup_fraction} must be in [0, 1]")
    if sweep.evaluations < 1:
        raise ValueError(f"the sweep's evaluations={sweep.evaluations} must be at least 1")
    others = dataclasses.replace(sweep, grid={}).sets | {"config.workdir": "plan"}
    for knob in sweep.grid:
        TRAINING.check(f"config.{knob}")
        if f"config.{knob}" in others:
            raise ValueError(f"the sweep's grid sets {knob}, which its {others[f'config.{knob}']} set too")


def _check_types(sweep: Sweep) -> None:
    def refuse(field: str, right: str, value: Any) -> ValueError:
        return ValueError(f"the sweep's {field} must be {right}, got {shown(value)}")

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if not isinstance(sweep.base, ConfigDict):
        raise refuse("base", "the ConfigDict of default_config()", sweep.base)
    if not isinstance(sweep.shapes, list | tuple) or not all(isinstance(shape, Shape) for shape in sweep.shapes):
        raise refuse("shapes", "a list of Shape(...)", sweep.shapes)
    if not isinstance(sweep.budgets, list | tuple) or not all(map(callable, sweep.budgets)):
        raise refuse("budgets", "a list of isoflop(...) or another budget", sweep.budgets)
    for shape in sweep.shapes:
        if not all(whole(size) for size in dataclasses.astuple(shape)):
            raise refuse("shapes", "of whole numbers", shape)
    for field in ("peak_lr", "batch_tokens"):
        if not (getattr(sweep, field) is None or callable(getattr(sweep, field))):
            raise refuse(field, "a rule, a function of a Scale (set the base's for one value)", getattr(sweep, field))
    if not isinstance(sweep.warmup_fraction, int | float | None):
        raise refuse("warmup_fraction", "a number", sweep.warmup_fraction)
    if not whole(sweep.evaluations):
        raise refuse("evaluations", "a whole number", sweep.evaluations)
    if not isinstance(sweep.grid, Mapping) or not all(isinstance(v, list | tuple) for v in sweep.grid.values()):
        raise refuse("grid", "a dict from knobs to lists of values", sweep.grid)


def _combinations(sweep: Sweep, base: cfg.Config, vocab_size: int) -> Iterator[tuple[Shape, float, dict[str, Any]]]:
    variants = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    for shape in sweep.shapes:
        try:
            scale = _scale(_resolved(_of_any_length(_shaped(base, shape)), vocab_size))
        except ValueError as error:
            raise ValueError(f"{shape}: {error}") from error
        for length in _lengths(sweep, shape, scale):
            for variant in variants:
                yield shape, length, variant


def _lengths(sweep: Sweep, shape: Shape, scale: Scale) -> list[int]:
    """The tokens of each run of a shape, without duplicates."""
    lengths: dict[int, None] = {}
    for budget in sweep.budgets:
        found = budget(scale)
        if not isinstance(found, Sequence) or not all(isinstance(length, int | float) for length in found):
            raise ValueError(f"a budget of the sweep gives {shown(found)} for {shape}; it must give a list of tokens")
        for length in found:
            if not (math.isfinite(length) and round(length) > 0):
                raise ValueError(f"a budget of the sweep gives {shape} {length} tokens; it must give at least 1")
            lengths[round(length)] = None
    return list(lengths)


def _run(
    sweep: Sweep,
    base: cfg.Config,
    shape: Shape,
    length: float,
    variant: dict[str, Any],
    folder: str,
    vocab_size: int,
) -> Run:
    name = _name(sweep, shape, length, variant)
    try:
        # A grid may change what the FLOPs depend on, so it comes first.
        config = _with(_shaped(base, shape), {f"config.{knob}": value for knob, value in variant.items()})
        scale = dataclasses.replace(_scale(_resolved(_of_any_length(config), vocab_size)), tokens=length)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}") from error
    batch = config.train.batch_tokens
    if sweep.batch_tokens is not None:
        batch = _whole_batch(config, sweep.batch_tokens(scale))
    steps = max(1, round(length / batch))
    if abs(steps * batch / length - 1) > _ROUNDING:
        raise ValueError(
            f"run {name}: {length} tokens are {steps * batch} in whole batches of {batch}; smaller batches must be used"
        )
    scale = dataclasses.replace(scale, tokens=steps * batch)
    values: dict[str, Any] = {
        "config.train.batch_tokens": batch,
        "config.train.tokens": steps * batch,
        "config.eval.every_steps": max(1, steps // sweep.evaluations),
    }
    if sweep.peak_lr is not None:
        values["config.optimizer.peak_lr"] = sweep.peak_lr(scale)
    if sweep.warmup_fraction is not None:
        values["config.optimizer.warmup_tokens"] = round(sweep.warmup_fraction * steps * batch)
    values["config.workdir"] = f"{folder.rstrip('/')}/{name}"
    try:
        return Run(name, _resolved(_with(config, values), vocab_size), scale)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}") from error


def _of_any_length(config: cfg.Config) -> cfg.Config:
    """The config with the largest possible number of tokens, which the length of each run replaces later."""
    most = MOST_STEPS * config.train.batch_tokens
    return dataclasses.replace(config, train=dataclasses.replace(config.train, tokens=min(config.train.tokens, most)))


def _name(sweep: Sweep, shape: Shape, length: float, variant: dict[str, Any]) -> str:
    """A name of depth, width and tokens, of heads and MLP if shapes share depth and width, and of grid values."""
    name = f"l{shape.num_layers}-d{shape.d_model}"
    alike = {s for s in sweep.shapes if (s.num_layers, s.d_model) == (shape.num_layers, shape.d_model)}
    for letter, field in (("h", "num_heads"), ("k", "d_head"), ("ff", "d_ff")):
        if len({getattr(s, field) for s in alike}) > 1:
            name += f"-{letter}{getattr(shape, field)}"
    name += f"-t{_compact(length)}"
    return name + "".join(f"-{knob.rpartition('.')[2]}{_slug(value)}" for knob, value in variant.items())


def _shaped(config: cfg.Config, shape: Shape) -> cfg.Config:
    return _with(config, {f"config.model.{knob}": getattr(shape, knob) for knob in _SHAPE_KNOBS})


def _with(config: cfg.Config, values: Mapping[str, Any]) -> cfg.Config:
    """A config with some knobs changed, by dotted name."""
    tree = cfg.to_dict(config)
    for knob, value in values.items():
        assert knob in TRAINING.defaults, knob
        *sections, last = knob.split(".")[1:]
        section = tree
        for part in sections:
            section = section[part]
        section[last] = value
    return cfg.freeze(tree)


def _scale(config: cfg.Config) -> Scale:
    per_token = flops.of_pretraining(config)
    return Scale(parameters(config.model), per_token)


def _whole_batch(config: cfg.Config, wanted: float) -> int:
    """The batch nearest to ``wanted`` tokens that is a power of two of sequences on each shard of the mesh.

    With powers of two, runs of one shape can often share a compiled program.
    """
    mesh = config.mesh
    unit = (config.train.sequence_length or config.model.context_length) * mesh.shards
    if not (math.isfinite(wanted) and wanted > 0):
        raise ValueError(f"the sweep's rule for batch_tokens gives {wanted}; it must be positive")
    return unit * 2 ** max(0, round(math.log2(wanted / unit)))


def _compact(number: float) -> str:
    """``1.5e6`` -> ``1.5m``: three digits, safe in a file name."""
    for limit, suffix in ((1e12, "t"), (1e9, "b"), (1e6, "m"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.0f}"


def _slug(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", f"{value:g}" if isinstance(value, float) else str(value))
