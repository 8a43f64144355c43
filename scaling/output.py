"""Standard output and error that fail before the work ends: the reader is gone, the disk is full, a hang-up, ``>&-``.

Python raises an exception when a stream cannot be written, which would end a training because nobody reads what it
prints. The streams here ignore such errors if the result of the verb is not what it prints. Characters that are not in
the encoding of the output are printed as escapes.
"""

import enum
import io
import os
import select
import sys
from typing import Any


class Stdout(enum.Enum):
    """What a verb prints on standard output. It decides what happens when that cannot be written."""

    RESULT = "the only result of the verb: it ends at once"
    COPY = "results that are not always in a file: the verb finishes its work, and its exit code reports the failure"
    LOG = "messages about results that are in files: the verb finishes, and its exit code is that of the work"


class ReaderGone(BrokenPipeError):
    """The reader of standard output or standard error is gone."""


class Stream(io.FileIO):
    """A stream that writes to a file descriptor. With ``ends`` False it ignores what cannot be written.

    Attributes:
        ends: whether the first error is raised.
        lost: the first error; None if everything was written.
    """

    def __init__(self, descriptor: int, ends: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.ends = ends
        self.lost: OSError | None = None

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        """Writes bytes; returns how many of them are written or ignored."""
        try:
            while (count := super().write(data)) is None:  # another program has made the terminal or pipe non-blocking
                select.select([], [self.fileno()], [])
            return count
        except OSError as error:
            if self.lost is None:
                name = "standard output" if self.fileno() == 1 else "standard error"
                kind = ReaderGone if isinstance(error, BrokenPipeError) else OSError
                self.lost = kind(error.errno, error.strerror, name)
                if self.ends:
                    self.ends = False  # so that the rest of the buffer does not raise again when Python exits
                    raise self.lost from None
                if self.fileno() == 1:
                    print(f"{name} cannot be written ({error.strerror}); continuing without it", file=sys.stderr)
            return memoryview(data).nbytes


def install() -> None:
    """Replaces ``sys.stdout`` and ``sys.stderr`` by such streams, and gives closed ones a descriptor.

    A stream that other code put there (a test, a notebook) stays. Until ``begin`` is called, errors of standard output
    are raised.
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
    """Sets what the verb that now begins prints on standard output."""
    if (stream := _raw(sys.stdout)) is not None:
        stream.ends = kind is Stdout.RESULT


def lost() -> OSError | None:
    """The error because of which a part of standard output is lost; None if everything was written."""
    sys.stdout.flush()
    stream = _raw(sys.stdout)
    return stream.lost if stream is not None else None


def _raw(stream: Any) -> Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Stream) else None


def _occupy(descriptor: int) -> None:
    """Opens a closed descriptor on the null device, so that the next file that is opened does not get its number."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(
            os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY
        )  # so that reading from 0 and writing to 1 or 2 fails
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds, ``h:mm:ss``; None = not known."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
