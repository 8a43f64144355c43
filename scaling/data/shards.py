"""Token shards: a flat stream of token ids in ArrayRecord files, with an index that detects damage.

A token directory holds ``tokens-00000-of-000NN.array_record`` and ``index.json``. The stream is every
document followed by the end-of-text token (GPT-3's packing, arXiv 2005.14165 appendix B), cut into
records of ``RECORD_TOKENS`` ids, little-endian uint16, or uint32 for a vocabulary above 65,536; the last
record is short. Damage is noticed: sizes are compared when a directory is opened, ArrayRecord checks a
hash of every chunk it reads, ids are compared with the vocabulary, and ``verify`` compares SHA-256.
"""

import bisect
import dataclasses
import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from scaling import durable, json_text
from scaling.data import control
from scaling.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD_TOKENS = 2048
SHARD_RECORDS = 1 << 18  # half a billion tokens, 1 GiB of uint16
INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its name, its number of records, its size in bytes and the SHA-256 of its content."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of ``index.json`` of a token directory."""

    format_version: int
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot: int
    dtype: str
    record_tokens: int
    tokens: int
    documents: int
    shards: tuple[Shard, ...]
    control_field: str = ""  # of the records; "" = no control codes
    controls: tuple[tuple[int, ...], ...] = ()  # tokens of each code

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and the tokenizer."""
        parts = [self.tokenizer_fingerprint, str(self.tokens), *(shard.sha256 for shard in self.shards)]
        parts += [repr(self.controls)] if self.control_field else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_index(directory: str | os.PathLike[str], whole: bool = True) -> Index:
    """Reads ``index.json`` and checks that every shard is there with its full size.

    Args:
        directory: token directory.
        whole: whether a shard that is missing or has another size is an error; otherwise it is logged.

    Raises:
        FileNotFoundError: no index, or a shard is missing.
        ValueError: the index is not one, has another format version, or a shard has another size.
    """
    path = Path(directory) / INDEX
    try:
        values: dict[str, Any] = json_text.parse(path.read_bytes(), path.name)
        found = tuple(Shard(**shard) for shard in values["shards"])
        codes = tuple(tuple(map(int, code)) for code in values.get("controls", ()))
        index = Index(**(values | {"shards": found, "controls": codes}))
    except FileNotFoundError:
        raise FileNotFoundError(f"{directory} is not a directory of token shards: it has no {INDEX}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged index of token shards ({error})") from None
    if index.format_version != FORMAT_VERSION:
        raise ValueError(f"{path}: format version {index.format_version}, but this code reads {FORMAT_VERSION}")
    for shard in index.shards:
        file = path.parent / shard.file
        fault: OSError | ValueError | None = None
        if not file.exists():
            fault = FileNotFoundError(f"{file}: shard is missing")
        elif (size := file.stat().st_size) != shard.bytes:
            fault = ValueError(f"{file}: shard is truncated or damaged: {size} bytes instead of {shard.bytes}")
        if fault and whole:
            raise fault
        if fault:
            log.warning("%s", fault)
    return index


def verify(directory: str | os.PathLike[str]) -> None:
    """Reads all shards and compares their SHA-256 with the index.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``, and for a shard whose content differs.
    """
    for shard in read_index(directory).shards:
        if _sha256(Path(directory) / shard.file) != shard.sha256:
            raise ValueError(f"{Path(directory) / shard.file}: shard is damaged: its SHA-256 is not that of the index")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dtype_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of the ids in shards."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes documents into a directory that exists and is empty; ``close`` writes the index and syncs all.

    Args:
        directory: where to write.
        tokenizer: the tokenizer of the documents.
        control_field: field that the control codes come from; "" = there are none.

    Raises:
        OSError: cannot write (no space, no permission); from every method.
    """

    def __init__(self, directory: Path, tokenizer: Tokenizer, control_field: str = "") -> None:
        self._directory = directory
        self._control_field = control_field
        self._codes: dict[str, tuple[int, np.ndarray]] = {}  # number and tokens
        self._numbers: list[np.ndarray] = []  # of the code of each pending token
        self._tokenizer = tokenizer
        self._dtype = dtype_of(tokenizer)
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._writer: Any = None
        self._records: list[int] = []  # of each shard so far
        self.tokens = 0
        self.documents = 0

    def append(self, ids: np.ndarray, code: str = "") -> None:
        """Adds one document, int [n]; its end-of-text token, and the tokens of its control code, are added here.

        Raises:
            ValueError: a code that has no token, or too many codes.
        """
        document = np.append(ids, self._tokenizer.eot).astype(self._dtype)
        if self._control_field:
            number, tokens = self._code(code)
            document = np.concatenate([tokens, document])
            self._numbers.append(np.full(document.size, number, np.uint16))
        self._pending.append(document)
        self._pending_tokens += document.size
        self.tokens += document.size
        self.documents += 1
        if self._pending_tokens >= 64 * RECORD_TOKENS:
            self._flush(last=False)

    def extend(self, stream: np.ndarray) -> None:
        """Adds whole documents at once, each with its end-of-text token after it; not in a stream with control codes.

        Args:
            stream: of ``dtype_of`` the tokenizer.
        """
        assert not self._control_field and stream.dtype == self._dtype, (self._control_field, stream.dtype)
        assert not stream.size or stream[-1] == self._tokenizer.eot, "the last document has no end"
        self._pending.append(stream)
        self._pending_tokens += stream.size
        self.tokens += stream.size
        self.documents += int((stream == self._tokenizer.eot).sum())
        self._flush(last=False)

    def _code(self, code: str) -> tuple[int, np.ndarray]:
        if code not in self._codes:
            tokens = self._tokenizer.encode(code).astype(self._dtype)
            if not tokens.size or len(self._codes) == control.MOST:
                raise ValueError(
                    f"the field {self._control_field!r} holds no control codes: "
                    + (f"more than {control.MOST:,} different texts" if tokens.size else f"{code!r} has no token")
                )
            self._codes[code] = len(self._codes), tokens
        return self._codes[code]

    def close(self) -> Index:
        """Finishes the shards, gives them their final names and writes the index."""
        self._flush(last=True)
        self._finish_shard()
        count = len(self._records)
        shards = []
        for number, records in enumerate(self._records):
            file = self._directory / f"tokens-{number:05d}-of-{count:05d}.array_record"
            self._part(number).rename(file)
            durable.sync([file])
            shards.append(Shard(file.name, records, file.stat().st_size, _sha256(file)))
        tokenizer = self._tokenizer
        index = Index(
            format_version=FORMAT_VERSION,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
            dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
            record_tokens=RECORD_TOKENS,
            tokens=self.tokens,
            documents=self.documents,
            shards=tuple(shards),
            control_field=self._control_field,
            controls=tuple(tuple(tokens.tolist()) for _, tokens in self._codes.values()),
        )
        path = self._directory / INDEX
        values = dataclasses.asdict(index)
        if not self._control_field:
            del values["control_field"], values["controls"]
        path.write_text(json.dumps(values, indent=1) + "\n")
        durable.sync([path])
        durable.sync_folders([self._directory])
        return index

    def _part(self, number: int) -> Path:
        return self._directory / f"tokens-{number:05d}.part"

    def _flush(self, last: bool) -> None:
        stream = np.concatenate([*self._pending, np.empty(0, self._dtype)])
        numbers = np.concatenate([*self._numbers, np.empty(0, np.uint16)])
        whole = stream.size if last else stream.size - stream.size % RECORD_TOKENS
        for start in range(0, whole, RECORD_TOKENS):
            here = slice(start, min(start + RECORD_TOKENS, whole))
            record = stream[here].tobytes()
            if self._control_field:
                record += control.trailer(stream[here], numbers[here], self._tokenizer.eot).tobytes()
            self._write(record)
        self._pending, self._pending_tokens = [stream[whole:]], stream.size - whole
        self._numbers = [numbers[whole:]]

    def _write(self, record: bytes) -> None:
        try:
            if self._writer is None:
                self._records.append(0)
                path = str(self._part(len(self._records) - 1))
                self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
            self._writer.write(record)
        except RuntimeError as error:
            raise _write_error(error, self._directory) from None
        self._records[-1] += 1
        if self._records[-1] == SHARD_RECORDS:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except RuntimeError as error:
                raise _write_error(error, self._directory) from None
            self._writer = None


def _write_error(error: RuntimeError, directory: Path) -> OSError:
    """Turns ArrayRecord's report of a failed system call, which is only a text, into an OSError."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(directory))
    return OSError(f"cannot write token shards into {directory} ({error})")


class TokenDataset(Sequence[np.ndarray]):
    """Random access to the sequences of a token directory; safe for threads, picklable, files opened when needed.

    ``dataset[i]`` is int32 [T+1]: tokens i*T to i*T+T, both included, so that inputs are ``[:-1]`` and targets
    ``[1:]``, and every token of the stream but the first is a target once. In a stream with control codes, a sequence
    that begins inside a document has its code in place of its first tokens.

    Args:
        directory: token directory.
        sequence_length: T, in tokens.
        part: (from, to), fractions of the stream: only this part of it is read. Parts that touch do not overlap.
        whole: whether missing or truncated shards are errors now; otherwise they are errors when they are read.
        cure: advice about damage, for the messages.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``; also from reading, with file and record, for a shard
            that cannot be read, a record of the wrong length and an id outside the vocabulary.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        sequence_length: int,
        part: tuple[float, float] = (0.0, 1.0),
        whole: bool = True,
        cure: str = "",
    ) -> None:
        self._cure = f"; {cure}" if cure else ""
        self.info = read_index(directory, whole)
        self.sequence_length = sequence_length
        longest = max(map(len, self.info.controls), default=0)
        if longest >= sequence_length:
            raise ValueError(
                f"{directory}: a control code of {longest} tokens leaves no text in a sequence of {sequence_length}"
            )
        self.start, self.stop = (round(self.info.tokens * fraction) for fraction in part)
        self._directory = Path(directory)
        self._ends = np.cumsum([shard.records for shard in self.info.shards]).tolist()
        self._readers: list[Any] = [None] * len(self._ends)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"TokenDataset({str(self._directory)!r}, {self.sequence_length}, tokens {self.start} to {self.stop})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _readers=[None] * len(state["_ends"]), _lock=threading.Lock())

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens of this part."""
        return hashlib.sha256(f"{self.info.fingerprint} {self.start} {self.stop}".encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """Number of tokens of this part."""
        return self.stop - self.start

    def __len__(self) -> int:
        return max(0, (self.tokens - 1) // self.sequence_length)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        first = self.start + int(i) * self.sequence_length
        sequence = self.read(first, first + self.sequence_length + 1)
        if not self.info.control_field:
            return sequence
        size, eot = self.info.record_tokens, self.info.eot
        record, tokens = self._record(first // size)
        number = control.number_at(record, tokens, first % size, eot)
        return control.conditioned(sequence, self.info.controls[number], eot)

    def read(self, first: int, last: int) -> np.ndarray:
        """Tokens ``first`` to ``last`` (not included) of the whole stream, int32 [last - first]."""
        size = self.info.record_tokens
        records = range(first // size, (last - 1) // size + 1)
        found = map(self._record, records)
        stream = np.concatenate([record[:tokens] for record, tokens in found])
        return stream[first - records.start * size : last - records.start * size]

    def _record(self, number: int) -> tuple[np.ndarray, int]:
        """A record, int32, and how many tokens it has; behind these is what ``control.trailer`` says."""
        shard = bisect.bisect_right(self._ends, number)
        inside = number - (self._ends[shard - 1] if shard else 0)
        where = f"{self._directory / self.info.shards[shard].file}, record {inside}"
        try:
            data = self._reader(shard).read([inside])[0]
        except (RuntimeError, IndexError, ValueError, OSError) as error:
            if not (self._directory / self.info.shards[shard].file).exists():
                raise ValueError(f"{where}: shard is missing{self._cure}") from None
            raise ValueError(f"{where}: damaged shard ({str(error).split(';')[0]}){self._cure}") from None
        expected = min(self.info.record_tokens, self.info.tokens - number * self.info.record_tokens)
        dtype = np.dtype(self.info.dtype).newbyteorder("<")
        if self.info.control_field and len(data) >= expected * dtype.itemsize:
            ids = np.frombuffer(data[: expected * dtype.itemsize], dtype)
            behind = control.entries(ids, self.info.eot)
        else:
            behind = 0
        if len(data) != (expected + behind) * dtype.itemsize:
            raise ValueError(
                f"{where}: {len(data)} bytes instead of {expected} tokens of {dtype.itemsize} bytes{self._cure}"
            )
        record = np.frombuffer(data, dtype).astype(np.int64)
        ids, numbers = record[:expected], record[expected:]
        if ids.max() >= self.info.vocab_size:
            where = f"{where}, token {ids.argmax()}"
            raise ValueError(f"{where}: id {ids.max()} is outside the vocabulary of {self.info.vocab_size}{self._cure}")
        if numbers.size and numbers.max() >= len(self.info.controls):
            raise ValueError(f"{where}: control code {numbers.max()} of {len(self.info.controls)}{self._cure}")
        return record.astype(np.int32), expected

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if self._readers[shard] is None:
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(self._directory / self.info.shards[shard].file),
                    options="readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=1 << 15,
                )
            return self._readers[shard]
