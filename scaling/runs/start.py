"""The run that another run begins with (``config.start``): its model, tokenizer and weights, and what is kept of it.

A run that begins so has a ``start.json``: from which run, at which step, with which bytes. It goes on from its own
checkpoints, and never looks for newer ones of its parent.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from scaling import durable, json_text
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.control_tokenizer import SUFFIXES, ControlTokenizer
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder, lora
from scaling.model.stack import layers_of
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.bias import read_bias
from scaling.runs.checkpoint import Checkpoints
from scaling.runs.config_json import read_config_json
from scaling.runs.paths import TEMPLATE, absolute

# Of a run, by the knob that names the other run.
FILES = {
    "start": "start.json",
    "rl.reward": "reward_start.json",
    "rl.gold": "gold_start.json",
    "distill.teacher": "teacher_start.json",
}
ALL_LAYERS, NOTHING = -1, -2  # of config.align.layers
_AFTER_BLOCKS = {"final_norm", "project_out"}  # parameters that read the last block
HUGGING_FACE = "huggingface"  # folder of a run that was imported, which its children keep
# Knobs that may differ from the parent's: what does not change what its weights mean.
_FREE = ("dropout_embedding", "dropout_attention", "dropout_residual", "document_mask", "outputs", "init_std")


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint of another run.

    Attributes:
        run: its directory.
        step: of the checkpoint.
        digest: of its files.
        model: resolved.
        knob: that names it.
        bias: what is added to its numbers if it is a reward model that scores; None otherwise, and where the run that
            begins is so old that it did not note it.
    """

    run: str
    step: int
    digest: str
    model: cfg.Model
    knob: str = "start"
    bias: float | None = None

    @classmethod
    def of(cls, config: cfg.Config, workdir: epath.PathLike, knob: str = "start") -> "Start":
        """What a knob names: at the step that ``workdir`` began with, or of ``Checkpoints.chosen`` for a new run.

        Args:
            config: with the path in its knob.
            workdir: run directory of the run that begins.
            knob: of FILES.

        Raises:
            FileNotFoundError: no run there.
            ValueError: no checkpoint, or the run in ``workdir`` began with another, or with one of another bias.
        """
        named = {"rl.reward": config.rl.reward, "rl.gold": config.rl.gold, "distill.teacher": config.distill.teacher}
        value = named.get(knob, config.start)
        run = str(absolute(value))
        if (absolute(workdir) / FILES[knob]).exists():
            noted = cls.noted(workdir, knob)
            if noted.run != run:
                raise refused(knob, value, f"must be {noted.run!r}, with which {workdir} began")
            if noted.bias is not None and (bias := read_bias(run)) != noted.bias:
                right = f"adds {bias} to its numbers now, and must add {noted.bias}, with which {workdir} began"
                raise refused(knob, value, f"{right}: restore its reward.json, or use another config.workdir")
            return noted
        values = read_config_json(run)
        if "config" not in values:
            raise refused(knob, value, "must be a run directory; `scaling import` makes one of such a folder")
        checkpoints = Checkpoints(run)
        try:
            saved = checkpoints.chosen(cfg.freeze(values["config"]).checkpoint.choose)
            if saved is None:
                raise refused(knob, value, "must hold a checkpoint")
            step, meta = saved
            added = read_bias(run) if knob.startswith("rl.") else None
            return cls(run, step, checkpoints.digest(step), cfg.freeze(meta["config"]).model, knob, added)
        finally:
            checkpoints.close()

    @classmethod
    def noted(cls, workdir: epath.PathLike, knob: str = "start") -> "Start":
        """What the run in ``workdir`` began with.

        Raises:
            FileNotFoundError: it has no such file.
        """
        path = absolute(workdir) / FILES[knob]
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; it must name the run that {workdir} began with")
        values = json_text.parse(path.read_bytes(), str(path))
        model = cfg.model_of(values["model"])
        return cls(values["run"], values["step"], values["digest"], model, knob, values.get("bias"))

    def note(self, workdir: epath.Path) -> None:
        """Writes its file, and copies the files that an imported run keeps for its export."""
        if (workdir / FILES[self.knob]).exists():
            return
        kept = epath.Path(self.run) / HUGGING_FACE
        if self.knob == "start" and kept.is_dir():
            for folder, _, names in kept.walk():
                new = workdir / HUGGING_FACE / folder.relative_to(kept)
                new.mkdir(parents=True, exist_ok=True)
                for name in names:
                    (folder / name).copy(new / name, overwrite=True)
        scores = {} if self.bias is None else {"bias": self.bias}
        values = {**self.identity(), **scores, "model": dataclasses.asdict(self.model)}
        durable.replace_text(workdir / FILES[self.knob], json.dumps(values, indent=2))

    def identity(self) -> dict[str, Any]:
        """What a run's records say of it."""
        return {"run": self.run, "step": self.step, "digest": self.digest}

    def tokenizer(self, config: cfg.Config, suffix: str) -> str:
        """The name of the tokenizer of a run that begins here.

        Args:
            config: its ``data.tokenizer`` is empty for the start's own.
            suffix: of ``control_tokenizer.SUFFIXES``, which the start's own gets if it has no such control tokens, or
                "". A tokenizer with a chat template of its own needs none for dialogues.

        Raises:
            ValueError: another tokenizer than the start's, with or without control tokens.
        """
        own = run_tokenizer.load(self.run, read_config_json(self.run))
        if not config.data.tokenizer:
            return own.name + suffix * _lacks(own, config, suffix)
        from scaling.data import tokenizer

        words = tokenizer.load(config.data.tokenizer)
        if own.fingerprint not in _before(words):
            raise refused(
                "data.tokenizer", config.data.tokenizer, f"must be that of config.start, {own.name!r}, or '' for it"
            )
        return config.data.tokenizer

    def chat_for(self, config: cfg.Config) -> cfg.Chat:
        """How a run that begins here frames dialogues: by the start's template and system message, or the config's."""
        kept = absolute(self.run) / TEMPLATE
        template = config.chat.template or (str(kept) if kept.exists() else "")
        system = config.chat.system or cfg.freeze(read_config_json(self.run)["config"]).chat.system
        return dataclasses.replace(config.chat, template=template, system=system)

    def model_for(self, config: cfg.Config, words: Tokenizer) -> cfg.Model:
        """The model of a run that begins here: the start's, with the dropout and the outputs of the config.

        Raises:
            ValueError: a knob of ``config.model`` that is neither its default nor the start's.
        """
        for field in dataclasses.fields(cfg.Model):
            value, default, own = (getattr(model, field.name) for model in (config.model, cfg.Model(), self.model))
            if field.name not in (*_FREE, "vocab_size") and value not in (default, own):
                raise refused(f"model.{field.name}", value, f"must be left out, or be that of config.start, {own!r}")
        if config.align.layers > self.model.num_layers:
            right = f"must be at most the {self.model.num_layers} layers of config.start"
            raise refused("align.layers", config.align.layers, right)
        free = {name: getattr(config.model, name) for name in _FREE}
        kept, own = config.distill.layers, self.model
        if kept > own.num_layers or (kept and (own.experts.count or own.layer_groups or own.encoder_layers)):
            right = f"must be at most {own.num_layers}, the layers of config.start, which must not share weights"
            raise refused("distill.layers", kept, f"{right}, have experts or stand behind an encoder")
        free |= {"num_layers": kept} if kept else {}
        return dataclasses.replace(self.model, vocab_size=max(self.model.vocab_size, words.vocab_size), **free)

    def adapters_for(self, config: cfg.Config, words: Tokenizer) -> cfg.Lora:
        """The adapters of a run that begins here, with the first row of a token that is trained whole."""
        adapters = config.lora
        if not adapters.rank or adapters.first_new_token >= 0:
            return adapters
        known = run_tokenizer.load(self.run, read_config_json(self.run)).vocab_size
        first = known if words.vocab_size > known else config.model.vocab_size
        return dataclasses.replace(adapters, first_new_token=first)

    def params(self, model: cfg.Model, mesh: jax.sharding.Mesh, seed: int, layers: int = ALL_LAYERS) -> decoder.Params:
        """The weights, for a model of ``model_for``: rows of new tokens are the mean row, a new head is random.

        Args:
            model: of ``model_for``.
            mesh: devices.
            seed: of what is random.
            layers: first blocks that come from the start, with the embeddings; the rest is random. With ``ALL_LAYERS``
                all come, and with ``NOTHING`` not even the embeddings.

        Raises:
            ValueError: the checkpoint is gone or has changed.
        """
        checkpoints = Checkpoints(self.run)
        try:
            meta = checkpoints.holds(self.step, self.digest)
            if meta is None:
                raise refused(self.knob, self.run, f"has no checkpoint of step {self.step} any more, or another one")
            found = read_whole(checkpoints, self.step, meta, self.run, mesh)
        finally:
            checkpoints.close()
        with jax.set_mesh(mesh):
            made = jax.jit(
                functools.partial(_grown, self.model, model, layers), out_shardings=decoder.shardings(model, mesh)
            )
            return made(found, jax.random.key(seed))


def read_whole(
    checkpoints: Checkpoints, step: int, meta: dict[str, Any], run: epath.PathLike, mesh: jax.sharding.Mesh
) -> decoder.Params:
    """All parameters of a run's model at a step; adapters are merged into the weights that the run began with.

    Args:
        checkpoints: of the run.
        step: verified.
        meta: of the step.
        run: its directory.
        mesh: the parameters are laid out on it as in training.

    Raises:
        FileNotFoundError, ValueError: a run with adapters whose base is not known, or is gone or has changed.
    """
    config = cfg.freeze(meta["config"])
    found = checkpoints.read_params(step, target(config, mesh))
    if not config.lora.rank:
        return found
    base = Start.noted(run).params(config.model, mesh, config.seed)
    with jax.set_mesh(mesh):
        where = decoder.shardings(config.model, mesh)
        return jax.jit(functools.partial(lora.whole, config), out_shardings=where, donate_argnums=1)(found, base)


def target(config: cfg.Config, mesh: jax.sharding.Mesh) -> decoder.Params:
    """What a checkpoint of a config has as its parameters: shapes with shardings."""
    shapes, where = lora.abstract(config.model, config.lora), lora.shardings(config.model, config.lora, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def _lacks(words: Tokenizer, config: cfg.Config, suffix: str) -> bool:
    """Whether a tokenizer needs the control tokens of a suffix."""
    if not suffix:
        return False
    if SUFFIXES[suffix].chat_template:
        return not (words.chat_template or config.chat.template)
    return words.spelling(SUFFIXES[suffix].tokens[0]) not in words.controls


def _before(words: Tokenizer) -> Iterator[str]:
    """Fingerprints of a tokenizer, and of those that it adds control tokens to."""
    yield words.fingerprint
    while isinstance(words, ControlTokenizer):
        words = words.base
        yield words.fingerprint


def _grown(old: cfg.Model, new: cfg.Model, layers: int, params: decoder.Params, key: jax.Array) -> decoder.Params:
    """Parameters of a model with more tokens or other outputs; ``layers`` as of ``Start.params``."""
    fresh = decoder.initialize(new, jax.random.fold_in(key, 2))
    tables = {"tokens", "unembedding", "logit_bias"}
    made = {name: params.get(name, value) for name, value in fresh.items()}
    if new.outputs != old.outputs:
        made |= {name: fresh[name] for name in decoder.HEAD if name in fresh}
    for name in tables & made.keys():
        made[name] = _with_rows(made[name], old.vocab_size, new)
    if new.generates:
        own: Any = made["generator"]
        made["generator"] = own | {"logit_bias": _with_rows(own["logit_bias"], old.vocab_size, new)}
    if layers == NOTHING:
        return fresh
    if new.num_layers < old.num_layers:  # of a student, every so many-th layer of the teacher
        kept = np.arange(new.num_layers) * old.num_layers // new.num_layers
        made[decoder.STACK] = jax.tree.map(lambda x: x[kept], made[decoder.STACK])
    if layers not in (ALL_LAYERS, new.num_layers):
        made |= {name: fresh[name] for name in _AFTER_BLOCKS & made.keys()}
        for name, numbers in layers_of(new).items():
            taken = np.asarray(numbers) < layers
            made[name] = jax.tree.map(functools.partial(_first, taken), made[name], fresh[name])
    return made


def _first(taken: np.ndarray, known: jax.Array, fresh: jax.Array) -> jax.Array:
    """Of arrays [L, ...], the known layers where they are taken over, and fresh ones elsewhere."""
    return jnp.where(taken.reshape(-1, *[1] * (known.ndim - 1)), known, fresh)


def _with_rows(table: Any, known: int, new: cfg.Model) -> jax.Array:
    """A table [V, ...] whose rows from ``known`` on are the mean of those before, where the new model has tokens."""
    mean = table[:known].mean(0)
    rows = jnp.arange(new.padded_vocab)
    padded = (
        jnp.zeros((new.padded_vocab, *table.shape[1:]), table.dtype).at[: len(table)].set(table[: new.padded_vocab])
    )
    is_new = (rows >= known) & (rows < new.vocab_size)
    return jnp.where(is_new.reshape(-1, *[1] * (table.ndim - 1)), mean, padded)
