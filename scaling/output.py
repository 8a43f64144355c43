"""Standard output and error that may end before the work does: a reader that goes, a full disk, a hang-up, ``>&-``.

Python raises where a stream cannot be written, which would end a training because nobody watches it any more. Here the
streams swallow such errors where the verb's work does not lie in what it prints, and no character is one that they
cannot take.
"""

import enum
import io
import os
import select
import sys
from typing import Any


class Stdout(enum.Enum):
    """What a verb's standard output is to it, which says what follows when it cannot be written."""

    RESULT = "all that the verb makes: it ends at once"
    COPY = "results that are not always in a file: the verb does its work to the end, and its exit code tells"
    LOG = "messages about work that lies in files: the verb does it, and its exit code is that of the work"


class ReaderGone(BrokenPipeError):
    """Nobody reads what we print any more."""


class Stream(io.FileIO):
    """A descriptor that is written to; with ``ends`` False it goes on without what cannot be written.

    Attributes:
        ends: whether the first error is raised.
        lost: the first error; None if everything was written.
    """

    def __init__(self, descriptor: int, ends: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.ends = ends
        self.lost: OSError | None = None

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        """Writes bytes; returns how many of them need not be given again."""
        try:
            while (count := super().write(data)) is None:  # somebody has made the terminal or pipe non-blocking
                select.select([], [self.fileno()], [])
            return count
        except OSError as error:
            if self.lost is None:
                name = "standard output" if self.fileno() == 1 else "standard error"
                kind = ReaderGone if isinstance(error, BrokenPipeError) else OSError
                self.lost = kind(error.errno, error.strerror, name)
                if self.ends:
                    self.ends = False  # what is still buffered is not to raise again when Python ends
                    raise self.lost from None
                if self.fileno() == 1:
                    print(f"{name} cannot be written ({error.strerror}); going on without it", file=sys.stderr)
            return memoryview(data).nbytes


def install() -> None:
    """Makes ``sys.stdout`` and ``sys.stderr`` such streams, and gives those that are closed a descriptor.

    What somebody else put there (a test, a notebook) stays. Until ``begin`` says what it is to the verb, an error of
    standard output is raised.
    """
    for descriptor in (0, 1, 2):
        _occupy(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or _raw(stream) is not None:
            continue
        encoding, errors = (stream.encoding, stream.errors) if stream else ("utf-8", "backslashreplace")
        text = io.TextIOWrapper(
            io.BufferedWriter(Stream(descriptor, ends=descriptor == 1)),
            encoding=encoding,
            errors="backslashreplace" if errors == "strict" else errors,
            line_buffering=descriptor == 2 or bool(stream and (stream.line_buffering or stream.write_through)),
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def begin(kind: Stdout) -> None:
    """Says what standard output is to the verb that begins."""
    if (stream := _raw(sys.stdout)) is not None:
        stream.ends = kind is Stdout.RESULT


def lost() -> OSError | None:
    """Why a part of standard output is lost; None if it is all written."""
    sys.stdout.flush()
    stream = _raw(sys.stdout)
    return stream.lost if stream is not None else None


def _raw(stream: Any) -> Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Stream) else None


def _occupy(descriptor: int) -> None:
    """Gives a closed descriptor a file that refuses, so that the next file opened does not get its number."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)  # each the wrong way round
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
