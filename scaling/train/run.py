"""What the parts of a training share: its config, its directory, its data, its devices."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from scaling.config import schema as cfg
from scaling.data import loader
from scaling.data.bad_records import BadRecords
from scaling.data.tokenizer import Tokenizer
from scaling.train.schedule import BatchSchedule


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        training: its sequences, in the order of training.
        held_out: sequences int32 [T+1] for the validation.
        bad_records: what stands in for sequences that cannot be read; None = they are errors.
        separator: of documents that are not to see each other, as of ``of_sequences``; None = they see each other.
    """

    training: loader.TrainingSet
    held_out: Sequence[np.ndarray]
    bad_records: BadRecords | None
    separator: int | None = None

    @classmethod
    def of(cls, config: cfg.Config, words: Tokenizer) -> "Data":
        """Finds the data of a resolved config, and tokenizes what is not in the cache; errors as in the loader."""
        bad_records = BadRecords() if config.data.bad_records == "skip" else None
        length = config.train.sequence_length
        return cls(
            training=loader.training_set(config.data, words, length, config.seed, bad_records),
            held_out=loader.validation_set(config.data, words, length, bad_records),
            bad_records=bad_records,
            separator=words.eot if config.model.document_mask else None,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, as all of its parts see it.

    Attributes:
        config: resolved.
        directory: the run directory.
        words: tokenizer.
        data: what it reads.
        mesh: all devices of all its processes.
    """

    config: cfg.Config
    directory: epath.Path
    words: Tokenizer
    data: Data
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def schedule(self) -> BatchSchedule:
        """How many sequences each step takes."""
        return BatchSchedule.from_config(self.config.train)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and the console."""
        return jax.process_index() == 0
