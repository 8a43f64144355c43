"""The tokenizer of a run directory, which contains its fingerprint (in ``config.json``) and a copy of its file.

With the copy, a run directory can be moved, copied to another machine or read from another folder, and the file that
``config.data.tokenizer`` names may change. With the fingerprint, a run is never read by another tokenizer.
"""

import logging
from collections.abc import Mapping
from typing import Any

from etils import epath

from scaling.data import tokenizer
from scaling.data.control_tokenizer import plain
from scaling.data.tokenizer import Tokenizer
from scaling.data.tokenizer_base import NAMES

log = logging.getLogger(__name__)

KEY = "tokenizer_fingerprint"  # in config.json; runs of older versions have none


def keep(words: Tokenizer, run_dir: epath.PathLike) -> None:
    """Writes the copy, unless it exists, or the tokenizer needs no file because its name is enough.

    Raises:
        OSError: it cannot be written.
    """
    if plain(words.name) not in NAMES:
        suffix, content = words.file()
        for name, bytes_ in {f"tokenizer{suffix}": content, **words.beside()}.items():
            path = epath.Path(run_dir) / name
            if not path.exists() or path.read_bytes() != bytes_:
                path.write_bytes(bytes_)


def load(run_dir: epath.PathLike, values: Mapping[str, Any], name: str | None = None) -> Tokenizer:
    """The tokenizer that a run was trained with. Every verb that reads a run and text gets it here.

    Args:
        run_dir: of ``scaling train``.
        values: of its ``config.json``.
        name: what the user asks for (see ``tokenizer.load``); None = the copy in the run directory, else what
            ``config.data.tokenizer`` names.

    Raises:
        FileNotFoundError: no such tokenizer.
        ValueError: a damaged file, or another tokenizer than the run's.
        OSError: it cannot be read or downloaded.
    """
    trained_with = values["config"]["data"]["tokenizer"]
    source = name or _copy(trained_with, run_dir) or trained_with
    try:
        words = tokenizer.load(source)
    except FileNotFoundError as error:
        if name:
            raise
        raise FileNotFoundError(
            f"{run_dir} was trained with the tokenizer {trained_with!r}, which is not found from here; name it with "
            "--tokenizer"
        ) from error
    expected = values.get(KEY)
    if expected is not None and words.fingerprint != expected:
        right = f"leave out --tokenizer={name}" if name else "restore that file"
        raise ValueError(
            f"the tokenizer {source} is not the one that {run_dir} was trained with ({trained_with!r}): its "
            f"fingerprint is {words.fingerprint[:12]} and not {expected[:12]}; {right}"
        )
    return words


def find(name: str, run_dir: epath.PathLike) -> Tokenizer:
    """The tokenizer to train with: the named one, or the run's copy if the named file does not exist.

    Raises:
        FileNotFoundError, ValueError, OSError: as ``tokenizer.load``.
    """
    try:
        return tokenizer.load(name)
    except FileNotFoundError:
        copy = _copy(name, run_dir)
        if copy is None:
            raise
        log.info("there is no tokenizer %s here; the run's copy is used, %s", name, copy)
        return tokenizer.load(copy)


def _copy(name: str, run_dir: epath.PathLike) -> str | None:
    """The copy of the tokenizer of that name, if there is one; a directory with GPT-2's files is kept as ranks."""
    text = plain(name)
    if text in NAMES:
        return None
    suffix = next((suffix for suffix in (".model", ".json", ".reduced") if text.endswith(suffix)), ".tiktoken")
    path = epath.Path(run_dir) / f"tokenizer{suffix}"
    if not path.exists():
        return None
    return f"{path}{name.removeprefix(text)}"
