"""Lets Orbax write arrays to ``s3://`` as it does to ``gs://``, with our retries and endpoint on both.

Orbax 0.12 knows only ``gs://`` as a place of TensorStore's that is no file. Where it makes the specification of such a
place, it is given ours, by replacing three of its functions; it offers no other way. The tests in ``tests/stores`` fail
if a newer Orbax does not use them any more.
"""

import os
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


def install() -> None:
    """Replaces Orbax's functions for the whole process; may be called again."""
    tensorstore_utils._use_gcs_driver = object_store.is_remote
    tensorstore_utils._normalize_path = _normalized
    gcs_utils.get_kvstore_for_gcs = object_store.kvstore


def path_class(directory: epath.PathLike) -> type[Any] | None:
    """How Orbax makes a step and the items in it whole: None = as usual, by renaming, which a store does not have.

    There the folders have their final names from the start, and our checksums tell when a step is whole. By itself
    Orbax does so only on ``gs://``; on ``s3://`` it would copy every item that it has written.
    """
    return atomicity.CommitFileTemporaryPath if object_store.is_remote(directory) else None
