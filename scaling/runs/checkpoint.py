"""Verified checkpoints: Orbax writes them, and checksums beside them commit them.

Layout of ``<run>/checkpoints/<step>/``: ``params``, ``optimizer`` and in some runs ``beside`` (Orbax items),
``meta.json`` (step, data position, config, versions) and ``checksums-<process>.json`` (SHA-256 of the files of this
process, written last, when those files are on disk). A step without all its checksums was never finished, or its
deletion, which removes the first checksums first, was cut short. A step whose files do not match is damaged. Restoring
names both, and uses the newest step that is whole.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from scaling import background, durable
from scaling.config import schema as cfg
from scaling.model.fused import apart, fused
from scaling.object_store import is_remote
from scaling.paths import is_url
from scaling.runs import orbax_stores, stores
from scaling.runs.choice import ranked
from scaling.runs.paths import CHECKPOINTS, absolute

orbax_stores.install()

log = logging.getLogger(__name__)

FORMAT = 2  # in format 1, or without one, queries, keys and values were one array (model/fused.py)
META = "meta.json"
_CHECKSUMS = "checksums-{:05d}.json"
_BLOCK = 1 << 22
_STREAMS = 8  # files of a store that are read at the same time, each as a whole
_TREES = ("params", "optimizer", "beside")  # of a state


# A training state: trees "params" and "optimizer", the scalar "step", and "guard", a dict of scalars; some kinds of
# training have a tree "beside", too. A run whose weights were imported begins without an optimizer, and with "imported"
# in the meta.
State = Mapping[str, Any]


class DamagedCheckpoint(Exception):
    """A step that is unfinished or whose bytes have changed; the message says which file and how."""


class Checkpoints:
    """Saves and restores the training state of one run directory."""

    def __init__(self, run_dir: epath.PathLike, config: cfg.Checkpoint | None = None):
        self.directory = absolute(run_dir) / CHECKPOINTS
        self.config = config or cfg.Checkpoint()
        self._remote = is_remote(self.directory)
        path_class = orbax_stores.path_class(self.directory)
        options = ocp.CompositeOptions(temporary_path_class=path_class)
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        self._saver = ocp.AsyncCheckpointer(handler, temporary_path_class=path_class)
        self._committer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        self._broken = False  # a save failed; Orbax repeats its error at every later call

    def steps(self) -> list[int]:
        """Steps that have a directory, finished or not, oldest first."""
        if not self.directory.exists():
            return []
        found = (path for path in self.directory.iterdir() if _is_step(path.name))
        return sorted(int(path.name) for path in found if self._remote or path.is_dir())

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Starts writing a step; waits only for the previous save and for the copy from the devices.

        Raises:
            OSError: this or the previous save could not be written; the message names the place and the last good step.
        """
        self.wait()
        path = self._path(step)
        self._make_room(step)
        meta = dict(meta, format=FORMAT, step=step, guard=to_json(state["guard"]))
        try:
            # Test the folder first: if it cannot be written, Orbax waits five minutes for the files that it has begun.
            durable.try_to_write(self.directory, jax.process_index())
            items = {name: state[name] for name in _TREES if name in state}
            self._saver.save(
                path, args=ocp.args.Composite(**{k: ocp.args.StandardSave(v) for k, v in items.items()}), force=False
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = self._committer.submit(self._commit, step, meta)
        if not self.config.asynchronous:
            self.wait()

    def save_filled(self, step: int, tree: Any, meta: dict[str, Any], fill: stores.Fill) -> None:
        """Writes a step of parameters alone, as ``stores.save`` does; commits it before it returns.

        Raises:
            OSError: as of ``save``.
            ValueError: that of ``fill``.
        """
        self._make_room(step)
        try:
            durable.try_to_write(self.directory, jax.process_index())
            stores.save(self._path(step), tree, fill)
        except OSError as error:
            raise self._failed(step, error) from error
        self._commit(step, dict(meta, format=FORMAT, step=step, guard={}))

    def wait(self) -> None:
        """Waits until the last save is on disk and committed; raises its error if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits for the last save and frees the threads; an error that was raised before is not raised again."""
        try:
            self.wait()
        finally:
            self._committer.shutdown()
            with contextlib.suppress(*((Exception,) if self._broken else ())):
                self._saver.close()

    def newest_whole(self, passed_over: Collection[int] = (), good: bool = False) -> tuple[int, dict[str, Any]] | None:
        """Step and meta of the newest whole checkpoint, every byte of it verified; None if nothing was ever saved.

        Steps passed over are named in the log. If all are damaged, that is an error, not a fresh start;
        only first saves that were cut short count as nothing saved.

        Args:
            passed_over: steps to skip.
            good: skip steps that were saved in the middle of bad steps, too. If steps are skipped, None also means that
                no other step is whole.

        Raises:
            ValueError: steps exist, and none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            meta = None if step in passed_over else self._checked_meta(step)
            if meta is not None and not (good and meta.get("guard", {}).get("in_a_row")):
                return step, meta
        if passed_over or good:
            return None
        if not all(self._unfinished(step) for step in steps):
            raise ValueError(
                f"{self.directory}: none of the checkpoints {steps} is whole; "
                "restore one from a backup, or use another config.workdir to start afresh"
            )
        return None

    def chosen(self, by: str) -> tuple[int, dict[str, Any]] | None:
        """Step and meta of the checkpoint that readers of the run take; None if nothing was ever saved.

        Args:
            by: ``config.checkpoint.choose`` of the run. With a figure, the best checkpoint that has one, is whole, and
                was not saved in the middle of bad steps; without one, or if there is no such checkpoint, the newest.

        Raises:
            ValueError: as ``newest_whole``, or ``evals.jsonl`` is damaged.
        """
        steps = np.asarray(self.steps())
        best = np.full(len(steps), -1)
        if by:
            found = ranked(self.directory.parent, by, steps.tolist())
            best[: len(found)] = found
            if not found:
                log.warning("%s: no checkpoint has a validation %s, so the newest is used", self.directory, by)
            if jax.process_count() > 1:  # another process may not see the last lines of the file yet
                best = np.asarray(multihost_utils.broadcast_one_to_all(best))
        for step in best[best >= 0].tolist():
            if whole := self.newest_whole(passed_over=set(steps.tolist()) - {step}, good=True):
                return whole
        return self.newest_whole()

    def digest(self, step: int) -> str:
        """Hash of a step that ``newest_whole`` found: of the checksums of all its files."""
        path = self._path(step)
        parts = [path / _CHECKSUMS.format(process) for process in range(_meta(path)["processes"])]
        return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()

    def holds(self, step: int, digest: str) -> dict[str, Any] | None:
        """Meta of a step if it has this digest and is whole, every byte verified; else None, with the reason logged."""
        if not self._path(step).is_dir() or self._unfinished(step) or self.digest(step) != digest:
            return None
        return self._checked_meta(step)

    def tidy(self, whole: int | None) -> None:
        """Deletes the rest of killed saves and deletions, and steps that are not kept any more, to make room.

        Args:
            whole: what ``newest_whole`` found; None deletes no steps.
        """
        if jax.process_index() == 0 and self.directory.exists():
            for path in self.directory.iterdir():
                if path.name.endswith(".orbax-checkpoint-tmp"):
                    path.rmtree()
            if whole is not None:
                self._prune(whole)

    def read_state(self, step: int, target: State) -> dict[str, Any]:
        """The state of a step that ``newest_whole`` found, laid out like ``target`` (shapes with shardings)."""
        state = self._read(step, {name: target[name] for name in _TREES if name in target})
        counter = jax.device_put(np.asarray(step, np.int32), target["step"].sharding)
        meta = json.loads((self._path(step) / META).read_text())
        return {**state, "step": counter, "guard": from_json(meta.get("guard"), target["guard"])}

    def read_params(self, step: int, target: Any) -> Any:
        """Only the parameters of a step that ``newest_whole`` found."""
        return self._read(step, {"params": target})["params"]

    def open_params(self, step: int, shapes: Any) -> Mapping[str, Any]:
        """As ``read_params``, by path, each read when it is sliced; those of format 1 are read at once, to the host."""
        if _meta(self._path(step)).get("format", 1) == FORMAT:
            return stores.load(self._path(step), shapes)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
        return stores.by_path(jax.device_get(self.read_params(step, target)))

    def _read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        path = self._path(step)
        old = _meta(path).get("format", 1) < FORMAT
        args = {k: ocp.args.StandardRestore(v) for k, v in (fused(targets) if old else targets).items()}
        found = dict(self._saver.restore(path, args=ocp.args.Composite(**args)).items())
        if not old:
            return found
        return jax.jit(apart, out_shardings=jax.tree.map(lambda x: x.sharding, targets), donate_argnums=0)(found)

    def _path(self, step: int) -> epath.Path:
        return self.directory / f"{step:09d}"

    def _commit(self, step: int, meta: dict[str, Any]) -> None:
        """Background: wait for Orbax, write meta and checksums, prune old steps."""
        path = self._path(step)
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                _write_json(path / META, dict(meta, processes=jax.process_count()))
            own = self._own_files(path)
            _sync(path, own)
            sums = dict(zip(own, _sums(path, own), strict=True))
            background.settle()  # a checkpoint covers the lines of all its steps
            _write_json(path / _CHECKSUMS.format(jax.process_index()), sums)
        except Exception as error:
            raise self._failed(step, error) from error
        if jax.process_index() == 0:
            self._prune(step)

    def _own_files(self, path: epath.Path) -> list[str]:
        """Files that this process checks: its own Orbax subfolders; for the first process also all shared files."""
        own, mine = [], f"ocdbt.process_{jax.process_index()}"
        for file in _files(path):
            name = str(file.relative_to(path))
            if file.name.startswith("checksums-"):
                continue
            owned = [part for part in file.parts if part.startswith("ocdbt.process_")]
            if mine in owned or (not owned and jax.process_index() == 0):
                own.append(name)
        return own

    def _unfinished(self, step: int) -> bool:
        """Whether the save or the deletion was cut short. Other combinations of marks are damage."""
        path = self._path(step)
        if not (path / META).exists():  # written before the first checksums
            return not (path / _CHECKSUMS.format(0)).exists()
        try:
            processes = _meta(path)["processes"]
        except DamagedCheckpoint:
            return False
        return not all((path / _CHECKSUMS.format(i)).exists() for i in range(processes))

    def _checked_meta(self, step: int) -> dict[str, Any] | None:
        """Meta of a step if it is whole for all processes; else None, with the reason logged."""
        reason = ""
        meta: dict[str, Any] = {}
        try:
            meta = verify(self._path(step))
        except DamagedCheckpoint as damaged:
            reason = str(damaged)
        if jax.process_count() > 1:
            good = multihost_utils.process_allgather(np.asarray([not reason]))
            reason = reason or ("" if good.all() else "damaged as seen by another process")
        if reason:
            log.warning("checkpoint of step %d passed over: %s", step, reason)
            return None
        return meta

    def _prune(self, newest: int) -> None:
        """Deletes steps up to ``newest``, but not the last ``keep_last`` or multiples of ``keep_every_steps``.

        The newest step that was not saved in the middle of bad steps is kept too, because a roll-back needs it, and
        of such steps the best, if ``config.choose`` says by what.
        """
        steps, every = [step for step in self.steps() if step <= newest], self.config.keep_every_steps
        unfinished = [step for step in steps if self._unfinished(step)]
        finished = [step for step in steps if step not in unfinished]
        old = [step for step in finished[: -self.config.keep_last] if not (every and step % every == 0)]
        good = [step for step in finished if not self._in_bad_steps(step)]
        kept = good[-1:]
        if self.config.choose:
            try:
                kept += ranked(self.directory.parent, self.config.choose, good)[:1]
            except ValueError as error:  # the next resume drops the damaged line
                log.warning("no checkpoint is deleted, because it is not known which is the best: %s", error)
                return
        old = [step for step in old if step not in kept]
        for step in [*old, *(step for step in unfinished if step < newest)]:
            self._delete(step)

    def _in_bad_steps(self, step: int) -> bool:
        try:
            return bool(_meta(self._path(step)).get("guard", {}).get("in_a_row"))
        except DamagedCheckpoint:
            return True

    def _delete(self, step: int) -> None:
        """Deletes a step; if that is cut short, it reads as unfinished and not as damaged."""
        (self._path(step) / _CHECKSUMS.format(0)).unlink(missing_ok=True)
        self._path(step).rmtree()

    def _make_room(self, step: int) -> None:
        """Makes room for a step that was skipped and is reached again: deleted if unfinished, set aside if damaged."""
        path = self._path(step)
        if jax.process_index() == 0 and path.is_dir() and self._unfinished(step):
            self._delete(step)
        self.set_aside(step)

    def set_aside_after(self, step: int) -> None:
        """Sets all later steps aside. All processes call it."""
        newer = [found for found in self.steps() if found > step]
        if jax.process_count() > 1:  # before the first is renamed, all must have seen the same
            multihost_utils.sync_global_devices(f"steps after {step}")
        for found in newer:
            self.set_aside(found)

    def set_aside(self, step: int) -> None:
        """Renames a step, if it exists, so that it does not count as a step; deletes nothing. All processes call it."""
        path = self._path(step)
        if jax.process_index() == 0 and path.exists():
            names = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
            aside = (path.with_name(f"{path.name}.damaged{name}") for name in names)
            free = next(path for path in aside if not path.exists())
            path.rename(free)
            log.warning("the checkpoint of step %d, which is not used, was moved to %s", step, free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"room for {step}")

    def _failed(self, step: int, error: Exception) -> OSError:
        self._broken = True
        good = [s for s in self.steps() if s != step and not self._unfinished(s)]
        last = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        text = str(error).strip() or type(error).__name__
        # TensorStore wraps the system's words: "...: No space left on device [os_error_code='28']".
        words = re.search(r": ([^:]+) \[os_error_code", text)
        reason = words[1] if words else text.splitlines()[0][:200]
        room = ""
        if not self._remote and self.directory.exists():
            room = f"; {shutil.disk_usage(self.directory).free / 1e9:.2f} GB free"
        return OSError(
            f"the checkpoint of step {step} could not be written to {self.directory} ({reason}{room}); {last}"
        )


def _is_step(name: str) -> bool:
    """Whether a folder has the name of a step as written here; other folders, such as ``7``, are left alone."""
    return name.isascii() and name.isdigit() and name == f"{int(name):09d}"


def to_json(scalars: Mapping[str, Any]) -> dict[str, float | int]:
    """Scalars of the devices as plain numbers; a float32 is the same, bit for bit, when it is read from JSON."""
    return {name: value.item() for name, value in jax.device_get(dict(scalars)).items()}


def from_json(values: Mapping[str, Any] | None, target: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The scalars of a checkpoint, typed and laid out like ``target``; those that an old one does not have are 0."""
    values = values or {}
    return {
        name: jax.device_put(np.asarray(values.get(name, 0), like.dtype), like.sharding)
        for name, like in target.items()
    }


def verify(path: epath.Path) -> dict[str, Any]:
    """Checks every byte of a step against its checksums (each process a share) and returns its meta.

    Raises:
        DamagedCheckpoint: unfinished, or a file missing, truncated or changed.
    """
    meta = _meta(path)
    digests: dict[str, str] = {}
    for process in range(meta["processes"]):
        part = path / _CHECKSUMS.format(process)
        try:
            digests.update(json.loads(part.read_text()))
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{path} is unfinished ({part.name} is missing)") from None
        except (ValueError, TypeError, RecursionError):
            raise DamagedCheckpoint(f"{part} is damaged (no JSON object)") from None
    if META not in digests:
        raise DamagedCheckpoint(f"{path / _CHECKSUMS.format(0)} is damaged ({META} is not in it)")
    for name in digests:
        if name.startswith("/") or is_url(name) or ".." in name.split("/"):
            raise DamagedCheckpoint(f"{path} has a checksum of {name}, which lies outside of it")
    share = sorted(digests)[jax.process_index() :: jax.process_count()]
    for name, found in zip(share, _sums(path, share), strict=True):
        if not found:
            raise DamagedCheckpoint(f"{path / name} is missing")
        if found != digests[name]:
            raise DamagedCheckpoint(f"{path / name} has changed since it was written (checksum differs)")
    if meta["step"] != int(path.name):
        raise DamagedCheckpoint(f"{path} holds step {meta['step']} and not its own")
    return meta


def _meta(path: epath.Path) -> dict[str, Any]:
    """The meta of a step, which says at least how many processes wrote it.

    Raises:
        DamagedCheckpoint: it is missing or unreadable.
    """
    try:
        meta = json.loads((path / META).read_text())
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is unfinished ({META} is missing)") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpoint(f"{path / META} is damaged (not JSON)") from None
    if not isinstance(meta, dict) or type(meta.get("processes")) is not int or meta["processes"] < 1:
        raise DamagedCheckpoint(f"{path / META} is damaged (it does not say how many processes wrote it)")
    return meta


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for folder, _, names in directory.walk():
        yield from (folder / name for name in names)


def _sums(path: epath.Path, names: list[str]) -> Iterator[str]:
    """The SHA-256 of files of a step, in the same order; "" for one that is missing. Of a store, some at a time."""
    files = [path / name for name in names]
    if not is_remote(path):
        yield from map(_sha256, files)
        return
    with concurrent.futures.ThreadPoolExecutor(_STREAMS, "checksums") as pool:
        yield from pool.map(_sha256, files)


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def _write_json(path: epath.Path, value: Any) -> None:
    durable.replace_text(path, json.dumps(value, indent=1, sort_keys=True), synced=True)


def _sync(path: epath.Path, files: list[str]) -> None:
    """Syncs files of a step, the names in its folders and its own name, so that they survive a loss of power."""
    durable.sync(path / name for name in files)
    durable.sync_folders({path.parent, path}.union(path / parent for name in files for parent in Path(name).parents))
