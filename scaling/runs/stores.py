"""Parameters of a checkpoint that are written and read a part at a time, so that they need not fit the memory.

Orbax writes and reads the files as always; only what it does with an array, it asks ``_Handler``.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint import type_handlers

from scaling.runs import orbax_stores

_ITEM = "params"


class Store:
    """An array in a checkpoint: a part that is assigned to is on disk, and a part that is asked for is read."""

    def __init__(self, array: Any):
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def rows_at_once(self) -> int:
        """Along the first axis, so many lie in one chunk, which is always read whole."""
        return int(self._array.chunk_layout.read_chunk.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._array[index].read().result()

    def __setitem__(self, index: Any, part: np.ndarray) -> None:
        try:
            self._array[index].write(part).result()
        except Exception as error:  # TensorStore's may be a ValueError, which is kept for what the parts come from
            raise OSError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Later:
    """A leaf of a tree in the place of an array.

    Attributes:
        shape: of the array, which is float32.
        chunk: shape of the parts in which it lies on disk; each must be written whole.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]


Fill = Callable[[Mapping[str, Store]], None]


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dicts by their paths, joined with dots, which are the names of arrays in a checkpoint."""
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def save(path: epath.Path, tree: Any, fill: Fill) -> None:
    """Writes the parameters of a step.

    Args:
        path: of the step; new.
        tree: dicts with ``Later`` leaves.
        fill: called once with the arrays by path, to write every part of each of them.

    Raises:
        ValueError, OSError: those of ``fill``.
        OSError: the step could not be written.
    """
    opened: Future[Any] = Future()  # the arrays by path
    filled: Future[None] = Future()
    with _silent(), ThreadPoolExecutor(1, "save") as pool:
        saving: Future[Any] = pool.submit(_save, path, tree, opened, filled)
        try:
            # Not in a thread of Orbax, so that ctrl-C ends it; then the pool waits until Orbax has stopped, too.
            if opened in wait((opened, saving), return_when=FIRST_COMPLETED).done:
                fill(opened.result())
        except BaseException:
            filled.set_exception(RuntimeError("the arrays were not filled"))
            raise
        filled.set_result(None)
        try:
            saving.result()
        except Exception as error:  # of Orbax or TensorStore, which have their own kinds, even for a full disk
            raise OSError(str(error)) from error


def _save(path: epath.Path, tree: Any, opened: Future[Mapping[str, Store]], filled: Future[None]) -> None:
    def fill(arrays: Mapping[str, Store]) -> None:
        opened.set_result(arrays)
        filled.result()

    with _checkpointer(path, fill) as saver:
        saver.save(path, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(tree)}))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without Orbax's messages: it prints each error with its traceback several times, and raises it as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def load(path: epath.Path, tree: Any) -> dict[str, Store]:
    """The parameters of a step by path, read when they are sliced; ``tree`` has their structure, with any leaves."""
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=Later), tree)
    with _checkpointer(path) as saver:
        args = ocp.args.PyTreeRestore(tree, restore_args=wanted)
        return by_path(saver.restore(path, args=ocp.args.Composite(**{_ITEM: args}))[_ITEM])


def _checkpointer(path: epath.Path, fill: Fill | None = None) -> ocp.Checkpointer:
    # Without a handler for arrays of JAX, Orbax prints a warning.
    handlers = (Later, _Handler(fill)), (jax.Array, ocp.type_handlers.ArrayHandler())
    registry = type_handlers.create_type_handler_registry(*handlers)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    path_class = orbax_stores.path_class(path)
    options = ocp.CompositeOptions(temporary_path_class=path_class)
    composite = ocp.CompositeCheckpointHandler(composite_options=options, **{_ITEM: handler})
    return ocp.Checkpointer(composite, temporary_path_class=path_class)


class _Handler(ocp.type_handlers.NumpyHandler):
    """What Orbax calls for leaves that are ``Later``."""

    def __init__(self, fill: Fill | None = None):
        super().__init__()
        self._fill = fill

    def typestr(self) -> str:
        """The name in the checkpoint's own description, as of arrays that JAX has."""
        return "jax.Array"

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        """Begins to write, when Orbax has made the folders."""
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(values, infos), name="fill")]

    async def _write(self, values: Sequence[Any], infos: Sequence[Any]) -> None:
        """Opens all arrays, and lets ``fill`` write."""
        stores = {}
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=value.shape,
                local_shape=value.chunk,
                dtype=np.dtype(np.float32),
                process_index=0,
                arg=ocp.SaveArgs(),
            )
            stores[info.name] = Store(await _opened(spec, info, create=True))
        assert self._fill is not None
        self._fill(stores)

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        """Opens all arrays for reading, and reads none."""
        specs = [type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint) for info in infos]
        opened = [_opened(spec, info) for spec, info in zip(specs, infos, strict=True)]
        return [Store(array) for array in await asyncio.gather(*opened)]


async def _opened(spec: dict[str, Any], info: Any, create: bool = False) -> Any:
    return await tensorstore.open(tensorstore.Spec(spec), create=create, open=True, context=info.ts_context)
