"""A run directory of a Hugging Face folder: its weights are a checkpoint of step 0, without an optimizer."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import tokenizer
from scaling.data.tokenizer_base import NAMES
from scaling.interop import gguf_file, huggingface, new_folder, tokenizer_files, weights
from scaling.object_store import StorePath, is_remote
from scaling.paths import must_be_local
from scaling.runs import config_json
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.checkpoint import Checkpoints

_SEQUENCE = 1024  # longest sequence that the run's config trains on, unless it is told otherwise


def import_folder(
    folder: str | os.PathLike[str], run_dir: str | os.PathLike[str], tokenizer_name: str | None = None
) -> None:
    """Makes a run directory that evaluates, generates, trains and exports like any other; all of it or nothing.

    Args:
        folder: as ``huggingface.opened``.
        run_dir: new or empty; on this machine or in an object store.
        tokenizer_name: as ``tokenizer.load`` reads; None = the folder's own.

    Raises:
        FileExistsError: the run directory holds something.
        FileNotFoundError, ValueError: as ``huggingface.load`` and ``tokenizer.load``, or a tokenizer that is larger
            than the model's table.
        OSError: the run directory cannot be written.
    """
    must_be_local("the folder to import", folder)
    target = StorePath(run_dir) if is_remote(run_dir) else Path(run_dir).absolute()
    if isinstance(target, Path):
        new_folder.check_new(target)
    with _small_files(Path(folder), tokenizer_name is None) as small:
        words = tokenizer.load(tokenizer_name or tokenizer_files.own_tokenizer(small))
        kept = tokenizer_files.of_folder(small)
    if tokenizer_name is not None:
        kept = {name: content for name, content in kept.items() if name in tokenizer_files.NO_TOKENIZER}
    with huggingface.opened(folder, cfg.Model().vocab_multiple) as found:
        _write(found, words, kept, os.fspath(folder), target)


def _small_files(folder: Path, with_tokenizer: bool) -> contextlib.AbstractContextManager[Path]:
    """The folder of what lies beside the weights."""
    if folder.is_file():
        return gguf_file.small_files(folder, with_tokenizer)
    config_json.read_config_json(folder)
    return contextlib.nullcontext(folder)


def _write(
    found: weights.FolderWeights,
    words: tokenizer.Tokenizer,
    kept: Mapping[str, bytes],
    source: str,
    target: Path | StorePath,
) -> None:
    model = found.model
    if words.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer {words.name!r} has {words.vocab_size} tokens, but the table of {source} has only "
            f"{model.vocab_size} rows; name the right one with --tokenizer"
        )
    name = words.name if words.name in NAMES else str(target / f"tokenizer{words.file()[0]}")
    config = _config(model, str(target), name)
    new = new_folder.filling_in_store(target) if isinstance(target, StorePath) else new_folder.filling(target)
    with new as partial:
        (partial / tokenizer_files.KEPT).mkdir()
        for file, content in kept.items():
            (partial / tokenizer_files.KEPT / file).write_bytes(content)
        run_tokenizer.keep(words, partial)
        checkpoints = Checkpoints(partial)
        try:
            meta = {"config": cfg.to_dict(config), "data": "", "imported": True, "sequences": 0, "tokens": 0}
            checkpoints.save_filled(0, weights.stored(model), meta, found.fill)
        finally:
            checkpoints.close()
        config_json.write_imported(epath.Path(partial), config, words, source)


def _config(model: cfg.Model, workdir: str, tokenizer_name: str) -> cfg.Config:
    """The run's config: training goes on gently, as fine-tuning does."""
    sequence = min(model.context_length, _SEQUENCE)
    batch = 32 * sequence
    train = cfg.Train(tokens=1000 * batch, sequence_length=sequence, batch_tokens=batch, microbatch_sequences=8)
    optimizer = cfg.Optimizer(peak_lr=2e-5, weight_decay=0.0, warmup_tokens=30 * batch)
    data = cfg.Data(tokenizer=tokenizer_name)
    return resolve(cfg.Config(workdir=workdir, model=model, data=data, train=train, optimizer=optimizer))
