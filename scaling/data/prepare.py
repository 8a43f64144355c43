"""Tokenizes text into token directories, once, and finds them again in the cache.

A token directory is written under a temporary name, synced and renamed, so a directory with its final name is complete.
If two processes make the same directory, the second finds that of the first and deletes its own if they are equal.

A damaged cache is made again from the text. A token directory that the user names is not a cache; if it is damaged, it
is refused.
"""

import collections
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from scaling import cache, durable, json_text, object_store
from scaling.config.schema import Data
from scaling.data import books, progress, shards, sources
from scaling.data.sources import Document
from scaling.data.tokenizer import Tokenizer, load
from scaling.object_store import is_remote
from scaling.paths import expanded, is_url

log = logging.getLogger(__name__)

_BATCH_CHARACTERS = 1 << 20  # text handed to a worker at a time
_NO_CACHE = "this is a token directory and no cache: restore it, or make it anew with `scaling tokenize`"
_Batch = list[tuple[str, Document]]
_HASHED_BYTES = 64 << 20  # sources up to this size are known by their content, larger ones by size and time


def prepare(
    pattern: str,
    tokenizer: str | Tokenizer,
    output: str | os.PathLike[str],
    text_key: str = "text",
    control_field: str = "",
) -> Path:
    """Tokenizes all documents of some text files into one token directory, in their order.

    Args:
        pattern: text files (see ``scaling.data.sources``).
        tokenizer: a tokenizer, or a name that ``tokenizer.load`` knows.
        output: the token directory; must not exist, unless another process just made it from the same files.
        text_key: field of the text in ``.jsonl`` and ``.parquet``.
        control_field: field of the control code there; "" = none.

    Raises:
        FileExistsError: ``output`` exists, or another process has just made it of other text or with another tokenizer.
        FileNotFoundError, ValueError: bad input (see ``sources``).
        OSError: cannot write.
    """
    _require_local(str(output))
    if Path(output).exists():
        raise FileExistsError(f"{output} exists and is not overwritten; remove it or choose another name")
    if control_field and control_field == text_key:
        raise ValueError(f"--control_field={control_field} is the field of the text, --text_key")
    tokenizer = load(tokenizer) if isinstance(tokenizer, str) else tokenizer
    files, output = sources.find(pattern), Path(output)
    fields = text_key, control_field
    with _written(files, tokenizer, output, fields, lambda found: ((".", each) for each in found), (".",)) as made:
        try:
            made.rename(output)
        except OSError:
            if not output.exists():
                raise
            if not _is_same(made, output):
                raise FileExistsError(
                    f"another process has just made {output} with another tokenizer or of other text; it is not "
                    "overwritten; choose another name"
                ) from None
    return output


def cached(data: Data, tokenizer: Tokenizer, split: str, source: str | None = None) -> tuple[Path, tuple[float, float]]:
    """Token directory of a source, tokenized now if the cache does not have it yet.

    Args:
        data: ``text_key``, ``control_field``, ``validation``, ``validation_fraction`` and ``cache_dir`` are used.
        tokenizer: the directory must have been made with it.
        split: "train" or "validation".
        source: a training source, ``data.train`` if None.

    Returns:
        The directory, and the part of its token stream that is the split (see ``shards.TokenDataset``).

    Raises:
        FileNotFoundError, ValueError: bad input, or a token directory of another tokenizer.
        OSError: cannot write into the cache.
    """
    assert split in ("train", "validation"), split
    source = data.train if source is None else source
    held_out = not data.validation and source != "books"
    if split == "validation" and data.validation:
        source = data.validation
    if not source:
        raise ValueError("config.data.train is empty; name text files, a token directory, or 'books'")
    if held_out and not 0 < data.validation_fraction < 1:
        raise ValueError(f"config.data.validation_fraction must lie between 0 and 1, not {data.validation_fraction}")
    whole = (0.0, 1.0)
    if source != "books" and _is_token_directory(source):
        path = _local(source, data)
        cut = 1 - data.validation_fraction
        part = whole if not held_out else (0.0, cut) if split == "train" else (cut, 1.0)
        return _checked(path, tokenizer, data, source), part
    if source == "books":
        files = [str(books.VALIDATION if split == "validation" else books.TRAIN)]
    else:
        files = sources.find(source)
    text_key = "text" if source == "books" else data.text_key
    fields = text_key, data.control_field
    rule = f"hold out {data.validation_fraction!r}" if held_out else "all"
    facts = [tokenizer.fingerprint, text_key, rule, str(shards.FORMAT_VERSION)]
    path = _cache(data) / _key(files, *facts, *([data.control_field] if data.control_field else []))
    names = ("train", "validation") if held_out else (".",)
    if not _is_whole(path, names):
        fraction = data.validation_fraction

        def assign(found: Iterable[Document]) -> Iterator[tuple[str, Document]]:
            return hold_out(found, fraction, source) if held_out else ((".", each) for each in found)

        with _written(files, tokenizer, path, fields, assign, names) as made:
            _into_cache(made, path, names)
    return path / split if held_out else path, whole


def cure(path: Path, data: Data) -> str:
    """Advice for a token directory of ``cached`` that is damaged; empty if it is not in the cache."""
    root = Path(data.cache_dir or cache.root()).expanduser() / "tokens"
    if path.is_relative_to(root):
        return f"this is a cache: delete {root / path.relative_to(root).parts[0]}, and it is made again"
    return ""


def hold_out(documents: Iterable[Document], fraction: float, source: str) -> Iterator[tuple[str, Document]]:
    """Assigns each document to "train" or "validation" by a hash of its text, so that equal ones stay together.

    Documents with a hash below ``fraction`` are held out, and in any case the one with the lowest hash. Of a single
    document the last part is held out.

    Raises:
        ValueError: no document is left for training.
    """
    lowest, low = 1.0, list[Document]()  # the documents of the lowest hash so far, not assigned yet
    total = train = 0
    for document in documents:
        total += 1
        key = int.from_bytes(hashlib.blake2b(document.text.encode(), digest_size=8).digest()) / 2**64
        if key == lowest:
            low.append(document)
            continue
        if key < lowest:
            (key, ready), (lowest, low) = (lowest, low), (key, [document])
        else:
            ready = [document]
        side = "validation" if key < fraction else "train"
        train += len(ready) * (side == "train")
        yield from ((side, each) for each in ready)
    if total == 1:
        yield from _cut(low[0], fraction)
        return
    if train == 0:
        raise ValueError(
            f"{source}: all {total} documents fell to validation; lower config.data.validation_fraction "
            f"({fraction}) or name held-out files in config.data.validation"
        )
    yield from (("validation", each) for each in low)


def _cut(document: Document, fraction: float) -> Iterator[tuple[str, Document]]:
    """Train and validation part of a single document, cut at the end of a line or a word where there is one."""
    text = document.text
    cut = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    for mark in ("\n\n", "\n", " "):
        near = text.find(mark, cut, cut + (len(text) - cut) // 2)
        if near >= 0:
            cut = near + len(mark)
            break
    yield "train", document._replace(text=text[:cut])
    yield "validation", document._replace(text=text[cut:])


@contextlib.contextmanager
def _written(
    files: list[str],
    tokenizer: Tokenizer,
    final: Path,
    fields: tuple[str, str],
    assign: Callable[[Iterable[Document]], Iterable[tuple[str, Document]]],
    names: tuple[str, ...],
) -> Iterator[Path]:
    """Makes a temporary folder beside ``final`` with the token directories of all names; deleted unless renamed.

    ``fields`` are those of the text and of the control code.
    """
    text_key, control_field = fields
    with _permission(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        writers = {}
        for name in names:
            (temporary / name).mkdir(exist_ok=True)
            writers[name] = shards.ShardWriter(temporary / name, tokenizer, control_field)
        with progress.Tokens(sources.size(files), f"tokenizing with {tokenizer.name}") as bar:
            found = sources.documents(files, text_key, bar.bytes, control_field)
            for name, ids, control in _encode(assign(found), tokenizer):
                writers[name].append(ids, control)
                bar.tokens(ids.size + 1)
        for writer in writers.values():
            writer.close()
        temporary.chmod(0o755)
        yield temporary
        durable.sync_folders([final.parent])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _into_cache(made: Path, final: Path, names: tuple[str, ...]) -> None:
    """Renames a folder to its place in the cache; if another process has put a whole one there, that is used."""
    try:
        made.rename(final)
    except OSError:
        if not (final.exists() or final.is_symlink()):
            raise
        if _damage(final, names):
            aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
            final.rename(aside / "damaged")
            made.rename(final)
            shutil.rmtree(aside, ignore_errors=True)


def _is_whole(path: Path, names: tuple[str, ...]) -> bool:
    """Whether token directories of the cache exist and pass the quick checks; warns if they are damaged."""
    if not path.exists():
        return False
    if damage := _damage(path, names):
        log.warning("the token cache %s is damaged and will be made again (%s)", path, damage)
    return not damage


def _damage(path: Path, names: tuple[str, ...]) -> str:
    """The damage of token directories in words; empty if there is none."""
    try:
        for name in names:
            index = shards.read_index(path / name)
            if sum(shard.bytes for shard in index.shards) <= _HASHED_BYTES:
                shards.verify(path / name)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _is_same(path: Path, other: Path) -> bool:
    try:
        return shards.read_index(path).fingerprint == shards.read_index(other).fingerprint
    except (ValueError, OSError):
        return False


def _encode(documents: Iterable[tuple[str, Document]], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray, str]]:
    """Tokenizes (name, document) in threads (the tokenizers release the GIL), in order, a bounded number in flight.

    Yields:
        The name, the ids of the text, and the control code.
    """
    workers = min(8, os.cpu_count() or 1)
    waiting: collections.deque[tuple[_Batch, Future[list[np.ndarray]]]] = collections.deque()

    def done(batch: _Batch, future: Future[list[np.ndarray]]) -> Iterator[tuple[str, np.ndarray, str]]:
        for (name, document), ids in zip(batch, future.result(), strict=True):
            yield name, ids, document.control

    with ThreadPoolExecutor(workers, "tokenize") as pool:
        try:
            for batch in _batches(documents):
                texts = [document.text for _, document in batch]
                waiting.append((batch, pool.submit(tokenizer.encode_batch, texts)))
                if len(waiting) > 2 * workers:
                    yield from done(*waiting.popleft())
            for batch, future in waiting:
                yield from done(batch, future)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[_Batch]:
    batch: _Batch = []
    characters = 0
    for name, document in documents:
        batch.append((name, document))
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cache(data: Data) -> Path:
    if not data.cache_dir:
        return cache.root() / "tokens"
    _require_local(data.cache_dir)
    return Path(expanded(data.cache_dir)) / "tokens"


def _require_local(path: str) -> None:
    if is_url(path):
        raise ValueError(
            f"{path}: token shards are written to a local directory; copy a finished one to the bucket "
            "and name it in config.data.train"
        )


@contextlib.contextmanager
def _permission(path: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise type(error)(
            f"cannot write token shards at {path.parent} ({error.strerror}); give a writable directory: --output of "
            "`scaling tokenize`, else config.data.cache_dir or $SCALING_CACHE"
        ) from None


def _key(files: list[str], *rest: str) -> str:
    digest = hashlib.sha256("\0".join(rest).encode())
    by_content = sources.size(files) <= _HASHED_BYTES
    for file in files:
        fs, path = sources.filesystem(file)
        if by_content:
            digest.update(hashlib.sha256(sources.read_bytes(file)).digest())
            digest.update("".join(suffix for suffix in sources.FORMATS if path.endswith(suffix)).encode())
        else:  # fsspec's key of a version: name, size and time or the store's tag
            digest.update(f"{file}\0{fs.ukey(path)}\0".encode())
    return digest.hexdigest()[:32]


def _is_token_directory(source: str) -> bool:
    return sources.is_file(f"{source.rstrip('/')}/{shards.INDEX}")


def _local(source: str, data: Data) -> Path:
    """The token directory itself if it is local, else its copy in the cache (ArrayRecord reads local files)."""
    if not is_url(source):
        return Path(sources.filesystem(source)[1])
    index = sources.read_bytes(f"{source.rstrip('/')}/{shards.INDEX}")
    final = _cache(data) / hashlib.sha256(index).hexdigest()[:32]
    if not _is_whole(final, (".",)):
        with _permission(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        try:
            _copy(source.rstrip("/"), index, temporary)
            shards.verify(temporary)
            _into_cache(temporary, final, (".",))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{str(error).replace(str(temporary), source)}; {_NO_CACHE}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _copy(source: str, index: bytes, folder: Path) -> None:
    """Copies a remote token directory; a shard of a bucket comes in pieces, of which some are under way at a time."""
    if not is_remote(source):
        fs, path = sources.filesystem(source)
        for name in fs.ls(path, detail=False):
            fs.get_file(name, str(folder / Path(name).name))
        return
    (folder / shards.INDEX).write_bytes(index)
    try:
        values = json_text.parse(index, f"{source}/{shards.INDEX}")
        sizes = {Path(shard["file"]).name: int(shard["bytes"]) for shard in values["shards"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}/{shards.INDEX}: damaged index of token shards ({error!r})") from None
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            for piece in object_store.stream(f"{source}/{name}", size):
                file.write(piece)


def _checked(path: Path, tokenizer: Tokenizer, data: Data, source: str) -> Path:
    try:
        index = shards.read_index(path, whole=data.bad_records == "error")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}; {_NO_CACHE}") from None
    if index.tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{source} was made with the tokenizer {index.tokenizer!r}, which differs from config.data.tokenizer "
            f"{tokenizer.name!r}; name that tokenizer or tokenize the text anew"
        )
    if index.control_field != data.control_field:
        raise ValueError(
            f"{source} was made with the control field {index.control_field!r}, and config.data.control_field is "
            f"{data.control_field!r}; they must be the same"
        )
    return path
