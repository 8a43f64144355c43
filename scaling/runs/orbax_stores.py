"""Lets Orbax write arrays to ``s3://`` as it does to ``gs://``, with our retries and endpoint on both.

Orbax 0.12 knows only ``gs://`` as a place of TensorStore's that is no file. Where it makes the specification of such a
place, it is given ours, by replacing three of its functions; it offers no other way. The tests in ``tests/stores`` fail
if a newer Orbax does not use them any more.
"""

import os

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

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
