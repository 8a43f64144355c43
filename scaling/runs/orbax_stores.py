"""Lets Orbax write arrays to ``s3://`` as it does to ``gs://``, with our retries and endpoint on both.

Orbax 0.12 knows only ``gs://`` as a place of TensorStore's that is no file. Where it makes the specification of such a
place, it is given ours, by replacing three of its functions; it offers no other way. The tests in ``tests/stores`` fail
if a newer Orbax does not use them any more.
"""

import logging
import os
import sys
import traceback
from typing import Any

from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.path import atomicity

from scaling import object_store


def _normalized(path: str) -> str:
    path = os.path.normpath(path)
    scheme, slash, rest = path.partition(":/")
    return f"{scheme}://{rest}" if slash and f"{scheme}://" in object_store.SCHEMES else path


_print_unraisable = sys.unraisablehook


def _unraisable(found: Any) -> None:
    """Prints an exception that could not be raised, unless it only says that TensorStore missed the end of a save.

    When a store refuses one write of a save, Orbax raises its error and closes its event loop. The other writes end
    later. TensorStore tells that to the loop, in a thread of its own, and Python prints a traceback for each.
    """
    trace = found.exc_traceback
    if trace is None or trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
        _print_unraisable(found)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that further tasks of Orbax have failed: it has raised the error of the first, and forgot the others."""
    trace = record.exc_info and record.exc_info[2]
    return not (trace and any("/orbax/" in frame.filename for frame in traceback.extract_tb(trace)))


def install() -> None:
    """Replaces Orbax's functions for the whole process, and what it leaves to be printed; may be called again."""
    tensorstore_utils._use_gcs_driver = object_store.is_remote
    tensorstore_utils._normalize_path = _normalized
    gcs_utils.get_kvstore_for_gcs = object_store.kvstore
    sys.unraisablehook = _unraisable
    logging.getLogger("asyncio").addFilter(_is_news)


def path_class(directory: epath.PathLike) -> type[Any] | None:
    """How Orbax makes a step and the items in it whole: None = as usual, by renaming, which a store does not have.

    There the folders have their final names from the start, and our checksums tell when a step is whole. By itself
    Orbax does so only on ``gs://``; on ``s3://`` it would copy every item that it has written.
    """
    return atomicity.CommitFileTemporaryPath if object_store.is_remote(directory) else None
