"""What the parts of a training share: its config, its directory, its data, its devices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from scaling.config import schema as cfg
from scaling.data import loader, pairs
from scaling.data.bad_records import BadRecords
from scaling.data.noise.by_name import noise_of
from scaling.data.noise.row import Noisy
from scaling.data.tokenizer import Tokenizer
from scaling.model import decoder, lora
from scaling.objectives.pretraining import must_fit
from scaling.runs.start import Start
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        training: its sequences or rows (see ``batch.filled``), in the order of training.
        held_out: those of the validation.
        bad_records: what stands in for sequences that cannot be read; None = they are errors.
        separator: of documents that are not to see each other, as of ``of_sequences``; None = they see each other.
    """

    training: Any  # loader.TrainingSet, or data.rows.Rows
    held_out: Sequence[Any]
    bad_records: BadRecords | None
    separator: int | None = None

    @classmethod
    def of(cls, config: cfg.Config, words: Tokenizer) -> "Data":
        """Finds the data of a resolved config, and tokenizes what is not in the cache; errors as in the loader."""
        must_fit(config)
        if config.data.objective in pairs.OBJECTIVES:
            return cls(*pairs.data(config, words), None)
        bad_records = BadRecords() if config.data.bad_records == "skip" else None
        separator = words.eot if config.model.document_mask else None
        noise = noise_of(config, words)
        length = config.train.sequence_length if noise is None else noise.taken
        training = loader.training_set(config.data, words, length, config.seed, bad_records)
        held_out: Sequence[Any] = loader.validation_set(config.data, words, length, bad_records)
        if noise is not None:
            training, held_out = training.with_noise(noise), Noisy(held_out, noise)
        return cls(training, held_out, bad_records, separator)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, as all of its parts see it.

    Attributes:
        config: resolved.
        directory: the run directory.
        words: tokenizer.
        data: what it reads.
        mesh: all devices of all its processes.
        start: the run that it begins with; None = random weights.
        beside: the part of its state that only its recipe knows; None = there is none.
    """

    config: cfg.Config
    directory: epath.Path
    words: Tokenizer
    data: Data
    mesh: jax.sharding.Mesh
    start: Start | None = None
    beside: train_state.Beside | None = None

    def abstract_state(self) -> train_state.TrainState:
        """Shapes, types and shardings of the state; nothing is allocated."""
        state = train_state.abstract_state(self.config, self.mesh)
        if self.beside is not None:
            state["beside"] = self.beside.shapes
        return state

    def fresh_state(self) -> train_state.TrainState:
        """The state before the first step."""
        state = train_state.create_state(self.config, self.mesh, self.base)
        if self.start is not None and self.base is None:
            state["params"] = self.start.params(
                self.config.model, self.mesh, self.config.seed, self.config.align.layers
            )
        if self.beside is not None:
            state["beside"] = self.beside.make(state["params"])
        return state

    @functools.cached_property
    def base(self) -> decoder.Params | None:
        """The parameters of ``start`` that adapters change, on the mesh; never donated. None without adapters.

        Raises:
            ValueError: the checkpoint is gone or has changed.
        """
        if not self.config.lora.rank:
            return None
        assert self.start is not None
        return self.start.params(self.config.model, self.mesh, self.config.seed)

    def whole(self, params: decoder.Params) -> decoder.Params:
        """All parameters of the model, of those of the state: the same without adapters."""
        return params if self.base is None else self._whole(params, self.base)

    @functools.cached_property
    def _whole(self) -> Callable[..., decoder.Params]:
        whole = functools.partial(lora.whole, self.config)
        return jax.jit(whole, out_shardings=decoder.shardings(self.config.model, self.mesh))

    @functools.cached_property
    def schedule(self) -> BatchSchedule:
        """How many sequences each step takes."""
        return BatchSchedule.from_config(self.config.train)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and the console."""
        return jax.process_index() == 0
