"""Object stores: ``gs://`` and ``s3://`` paths, through the same library (TensorStore) that writes the checkpoints.

An object is put whole or not at all, and a confirmed one is there for every later reader. There are no folders, names
cannot be changed, and nothing can be appended. What takes the place of these:

- A folder is the beginning of names: ``mkdir`` does nothing, and a folder exists as long as something lies in it.
- A file is replaced by one put (``write``). With ``generation``, the put happens only if the object is still the one
  that was read (``ifGenerationMatch`` on Google Cloud Storage, ``If-Match`` and ``If-None-Match`` on S3).
- ``rename`` copies every object and then deletes the old ones. It is not atomic, so only what is set aside uses it.

A request that fails for a while (429, 5xx, a lost or silent connection) is repeated with growing pauses, for at most
``set_patience`` seconds. After that the store counts as gone, and all later requests of the process fail at once, so
that it can end. Credentials are those of the cloud's own tools: application default credentials, or the AWS chain. S3
also reads ``AWS_REGION`` and ``AWS_ENDPOINT_URL``.

Importing this module makes ``epath.Path`` give ``StorePath`` for such paths, and refuse those of other stores.
"""

import collections
import contextlib
import errno
import fnmatch
import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from etils import epath
from etils.epath import gpath, register, stat_utils

SCHEMES = ("gs://", "s3://")
MISSING = b"\x02"  # TensorStore's generation of an object that does not exist
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between tries; each pause is twice the one before
_NOTICED = 5.0  # seconds later than set, curl notices silence: it looks at the mean of so many
_SILENCE = "SCALING_STORE_SILENCE"  # what a process has set, so that those which it starts may set another
_patience = 300.0
_gone: OSError | None = None
_PIECE, _AHEAD = 16 << 20, 8  # bytes of a piece of a large object, and pieces that are asked for ahead
_STREAMS = 32  # requests of a snapshot at the same time
_snapshots: dict[str, dict[str, bytes | None]] = {}  # folder -> name -> content, None where it was not read


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of an object store."""
    return str(path).startswith(SCHEMES)


def set_patience(seconds: float) -> None:
    """Sets how long a request may fail; it holds for requests that begin later, in the whole process."""
    global _patience, _gone
    _patience, _gone = seconds, None
    _limit_silence(seconds)


def _tries(seconds: float) -> tuple[int, int]:
    """So many tries, and seconds of silence after which one has failed, fill a time; a quarter of it are pauses."""
    tries, pause, spent = 1, _FIRST_PAUSE, 0.0
    while spent + pause <= seconds / 4:
        tries, spent, pause = tries + 1, spent + pause, min(2 * pause, _LONGEST_PAUSE)
    return tries, max(1, int((seconds - spent) / tries - _NOTICED))


def forget() -> None:
    """Forgets opened buckets, for when the environment leads to other stores."""
    _bucket.cache_clear()
    set_patience(_patience)


def _limit_silence(seconds: float) -> None:
    """Sets how long a connection may be silent, unless the user has. TensorStore reads it once, at its first one."""
    ours, limit = os.environ.get(_SILENCE), str(_tries(seconds)[1])
    for name in ("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"):
        if os.environ.get(name) in (None, ours):
            os.environ[name] = limit
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ[_SILENCE] = limit


def kvstore(url: str) -> dict[str, Any]:
    """TensorStore's specification of the objects whose names begin with a URL."""
    scheme, bucket, name = _parts(url)
    retries = {
        "max_retries": _tries(_patience)[0],
        "initial_delay": f"{int(1000 * _FIRST_PAUSE)}ms",
        "max_delay": f"{int(1000 * _LONGEST_PAUSE)}ms",
    }
    if scheme == "gs":
        driver = os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs")
        return {"driver": driver, "bucket": bucket, "path": name, "gcs_request_retries": retries}
    found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": name, "s3_request_retries": retries}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # the whole chain would look for files first, and complain of each aloud
        found["aws_credentials"] = {"type": "environment"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        found |= {"endpoint": endpoint, "aws_region": region}
    return found


def read(path: str | os.PathLike[str]) -> tuple[bytes | None, bytes]:
    """The content of an object, None if there is none, and its generation, which ``write`` takes.

    Raises:
        OSError: the store does not answer, or refuses.
    """
    if seen := _snapshot_of(path):
        names, name = seen
        if name not in names or names[name] is not None:
            return names.get(name), b""
    bucket, name = _opened(path)
    found = _done(bucket.read(name), path)
    return (None if found.state == "missing" else found.value), found.stamp.generation


def stream(path: str | os.PathLike[str], size: int) -> Iterator[bytes]:
    """The bytes of an object in pieces, with some requests ahead of the reader.

    Args:
        path: of the object.
        size: in bytes.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: as ``read``, or it is shorter.
    """
    bucket, name = _opened(path)
    under_way: collections.deque[Any] = collections.deque()
    for start in range(0, size, _PIECE):
        under_way.append(bucket.read(name, byte_range=slice(start, min(start + _PIECE, size))))
        if len(under_way) > _AHEAD:
            yield _found(under_way.popleft(), path)
    for future in under_way:
        yield _found(future, path)


def _found(future: Any, path: str | os.PathLike[str]) -> bytes:
    found = _done(future, path)
    if found.state == "missing":
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
    content: bytes = found.value
    return content


def version(path: str | os.PathLike[str]) -> int:
    """A number that changes when the object does; its content is not read.

    Raises:
        FileNotFoundError: there is none.
        OSError: as ``read``.
    """
    bucket, name = _opened(path)
    found = _done(bucket.read(name, byte_range=slice(0, 0)), path)
    if found.state == "missing":
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
    return int.from_bytes(found.stamp.generation, "little")


def write(path: str | os.PathLike[str], content: bytes | None, generation: bytes | None = None) -> bytes | None:
    """Puts an object, or deletes it.

    Args:
        path: of the object.
        content: whole; None deletes it.
        generation: do it only if the object has this one; None = in any case.

    Returns:
        The new generation; None if the object had another one, and nothing was done. After a failure in between, this
        may also be the answer to a second try of a put whose first one had been done: read the object to know.

    Raises:
        OSError: the store does not answer, or refuses.
    """
    bucket, name = _opened(path)
    stamp = _done(bucket.write(name, content, if_equal=generation), path)
    return stamp.generation or None


@contextlib.contextmanager
def snapshot(folders: Iterable[str | os.PathLike[str]], wanted: str) -> Iterator[None]:
    """Inside of the block, what is asked of some folders is answered as they were at its beginning.

    All requests for it are made at once, so that readers of many runs do not wait for one after the other.

    Args:
        folders: of object stores; others are left out.
        wanted: a regular expression of the names, relative to a folder, whose objects are read then, too.

    Raises:
        OSError: a store does not answer, or refuses.
    """
    paths = [StorePath(folder) for folder in folders if is_remote(folder) and _snapshot_of(folder) is None]
    with ThreadPoolExecutor(_STREAMS, "snapshot") as pool:
        found = {
            str(path): dict.fromkeys(names) for path, names in zip(paths, pool.map(StorePath.names, paths), strict=True)
        }
        objects = [(path, name) for path in found for name in found[path] if re.search(wanted, name)]
        contents = pool.map(lambda each: read(f"{each[0]}/{each[1]}")[0], objects)
        for (path, name), content in zip(objects, contents, strict=True):
            found[path][name] = content
    _snapshots.update(found)
    try:
        yield
    finally:
        for path in found:
            del _snapshots[path]


def _snapshot_of(path: str | os.PathLike[str]) -> tuple[dict[str, bytes | None], str] | None:
    """The names and contents of the snapshot that has a path, and the path relative to its folder."""
    for folder, names in _snapshots.items():
        if str(path) == folder or str(path).startswith(f"{folder}/"):
            return names, str(path).removeprefix(folder).removeprefix("/")
    return None


class StorePath(gpath.PosixGPath):
    """A path of an object store, with the methods of ``epath.Path``; errors are OSErrors with the path."""

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        if seen := _snapshot_of(self):
            return seen[1] in seen[0]
        bucket, name = _opened(self)
        return bool(name) and _done(bucket.read(name, byte_range=slice(0, 0)), self).state != "missing"

    def is_dir(self) -> bool:
        return bool(self.names())

    def names(self) -> list[str]:
        """The names of all objects in this folder and in those below, relative to it, sorted."""
        import tensorstore

        if seen := _snapshot_of(self):
            folder = f"{seen[1]}/" if seen[1] else ""
            return [name.removeprefix(folder) for name in seen[0] if name.startswith(folder)]
        bucket, name = _opened(self)
        folder = f"{name}/" if name else ""
        # "0" follows "/" in the order of bytes.
        keys = tensorstore.KvStore.KeyRange(folder, f"{name}0" if name else "")
        found = (key.decode() for key in _done(bucket.list(keys), self))
        # An object that is named like the folder is a mark of other tools.
        return sorted(key.removeprefix(folder) for key in found if key.startswith(folder) and key != folder)

    def iterdir(self) -> "Iterator[StorePath]":
        names = self.names()
        if not names:
            raise FileNotFoundError(errno.ENOENT, "No such folder", str(self))
        for first in dict.fromkeys(name.split("/")[0] for name in names):
            yield self / first

    def walk(self, **_: Any) -> "Iterator[tuple[StorePath, list[str], list[str]]]":
        """As ``Path.walk``, top down; with one request, whatever the number of folders."""
        files: dict[str, list[str]] = {"": []}
        for name in self.names():
            parts = name.split("/")
            for depth in range(1, len(parts)):
                files.setdefault("/".join(parts[:depth]), [])
            files["/".join(parts[:-1])].append(parts[-1])
        for folder, inside in files.items():
            below = [other for other in files if other and other.rpartition("/")[0] == folder]
            yield (self / folder if folder else self), [other.rpartition("/")[2] for other in below], inside

    def glob(self, pattern: str) -> "Iterator[StorePath]":
        """Objects and folders that match; ``*`` does not cross a slash."""
        depth = pattern.count("/") + 1
        paths = ("/".join(name.split("/")[:depth]) for name in self.names() if name.count("/") + 1 >= depth)
        wanted = re.compile(
            "/".join(fnmatch.translate(part).removesuffix(r"\Z") for part in pattern.split("/")) + r"\Z"
        )
        for name in dict.fromkeys(paths):
            if wanted.match(name):
                yield self / name

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as an object lies in it."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Deletes all objects, one after the other in the order of their names."""
        names = self.names()
        if not names and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "No such folder", str(self))
        for name in names:
            write(self / name, None)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        write(self, None)

    def read_bytes(self) -> bytes:
        content, _ = read(self)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        return content

    def write_bytes(self, data: Any) -> int:
        write(self, bytes(data))
        return len(data)

    def open(self, mode: str = "r", *, encoding: str | None = None, **_: Any) -> IO[Any]:
        """Reads the whole object at once, or puts what was written when the file is closed without an error."""
        kind = mode.replace("b", "").replace("t", "")
        if kind not in ("r", "w"):
            raise io.UnsupportedOperation(f"{self}: an object can be read or replaced, and not opened by {mode!r}")
        raw = io.BytesIO(self.read_bytes()) if kind == "r" else _Upload(self)
        return raw if "b" in mode else _Text(raw, encoding="utf-8", newline=None if kind == "r" else "")

    def rename(self, target: epath.PathLike) -> "StorePath":
        """Copies all objects, then deletes the old ones; not atomic."""
        return self.replace(target)

    def replace(self, target: epath.PathLike) -> "StorePath":
        """As ``rename``."""
        new = StorePath(target)
        names = self.names()
        for name in names:
            (new / name).write_bytes((self / name).read_bytes())
        for name in names:
            write(self / name, None)
        if not names:
            new.write_bytes(self.read_bytes())
            write(self, None)
        return new

    def copy(self, dst: epath.PathLike, overwrite: bool = False) -> Any:
        target = epath.Path(dst)
        if not overwrite and target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        target.write_bytes(self.read_bytes())
        return target

    def stat(self) -> stat_utils.StatResult:
        """The length; stores give no owner, and TensorStore no time."""
        return stat_utils.StatResult(is_directory=False, length=len(self.read_bytes()), mtime=0)


class _Stores(dict[str, Any]):
    """The classes of paths by scheme, as ``epath.Path`` looks them up; a KeyError of its own would be no sentence."""

    def __missing__(self, scheme: str) -> Any:
        raise ValueError(f"{scheme}... names no store that is known here; use gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")


register._URI_PREFIXES_TO_CLS = _Stores()
epath.register_path_cls(SCHEMES)(StorePath)


class _Upload(io.BytesIO):
    """Collects an object, which is put when this is closed, unless an error is on its way.

    It is put at most once, and never by the garbage collector, which may run in any thread, and so late that the object
    has been replaced by a newer one.
    """

    def __init__(self, path: StorePath):
        super().__init__()
        self._path, self.dropped = path, False

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.dropped |= kind is not None
        super().__exit__(kind, *rest)

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            if not self.dropped:
                self._path.write_bytes(content)

    def __del__(self) -> None:
        self.dropped = True


class _Text(io.TextIOWrapper):
    """Text in UTF-8 of an object; of an error on its way the object must hear, too."""

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if isinstance(self.buffer, _Upload):
            self.buffer.dropped |= kind is not None
        super().__exit__(kind, *rest)

    def __del__(self) -> None:
        if isinstance(self.buffer, _Upload):
            self.buffer.dropped = True


def _parts(url: str | os.PathLike[str]) -> tuple[str, str, str]:
    """Scheme, bucket and name; a name has no slash at its ends."""
    scheme, _, rest = str(url).partition("://")
    bucket, _, name = rest.partition("/")
    if not bucket:
        raise ValueError(f"{url} names no bucket; it must be like {scheme}://BUCKET/FOLDER")
    return scheme, bucket, name.strip("/")


def _opened(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """The key-value store of a path's bucket, and the name in it."""
    if _gone is not None:
        raise OSError(_gone.errno, _gone.strerror, str(path))
    scheme, bucket, name = _parts(path)
    return _bucket(f"{scheme}://{bucket}", _patience), name


@functools.lru_cache(maxsize=32)
def _bucket(url: str, patience: float) -> Any:
    import tensorstore

    _limit_silence(patience)
    try:
        opening = tensorstore.KvStore.open(kvstore(url))
    except ValueError:
        raise ValueError(f"{url} cannot be a bucket: its name is not one that a store gives") from None
    return _done(opening, url)


def _done(future: Any, path: str | os.PathLike[str]) -> Any:
    """The result of a request, or an OSError with a sentence and the path."""
    global _gone
    try:
        return future.result()
    except Exception as error:
        made = as_os_error(error, path)
        if "retry attempts failed" in str(error):
            _gone = made
        raise made from error


def as_os_error(error: Exception, path: str | os.PathLike[str]) -> OSError:
    """An error of TensorStore, which are ValueErrors with the words of the store, in ours."""
    text = str(error)
    if re.search(r"UNAUTHENTICATED|http_response_code='401'|ExpiredToken|InvalidAccessKeyId|InvalidToken", text):
        return PermissionError(errno.EACCES, "the object store takes these credentials for none, or expired", str(path))
    if re.search(r"PERMISSION_DENIED|http_response_code='403'", text):
        return PermissionError(errno.EACCES, "the object store does not permit it", str(path))
    if text.startswith("NOT_FOUND"):
        return FileNotFoundError(errno.ENOENT, "there is no such bucket", str(path))
    reason = re.sub(r"\s*\[.*", "", text.partition(" retry attempts failed: ")[2] or text, flags=re.DOTALL)
    return OSError(errno.EIO, f"the object store does not answer as it should ({reason[:200]})", str(path))
