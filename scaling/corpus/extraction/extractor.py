"""The main text of HTML pages, taken out in a process of its own.

A page may drive the parser into a crash, an endless loop in C or all of the memory. So pages go through pipes to a
child process, which the kernel stops at a limit of processor time or memory; that costs one page, and the next one gets
a new child. A child takes a second to start, and serves any number of pages.

Processor time counts the work on the page alone, so a loaded machine hardly changes which pages are stopped. It is a
last resort all the same: limits that depend on the page alone come before it (``extract``).
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from typing import IO

_LENGTH = struct.Struct("<q")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a child process is started with."""

    extractor: str = "trafilatura"  # or "resiliparse"
    comments: bool = False
    tables: bool = True
    seconds: float = 120.0  # of processor time for a page
    memory: int = 4 << 30  # bytes of address space


class Stopped(Exception):
    """The page could not be extracted; says why in one sentence."""


class Extractor:
    """A child process that extracts pages one after another; it starts at the first page."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def extract(self, page: str) -> str:
        """The main text; "" = there is none.

        Raises:
            Stopped: the page took too much time or memory, or broke the extractor.
            ValueError: the extractor's package is not installed.
        """
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        try:
            _send(self._child.stdin, page.encode("utf-8", "replace"))
            answer = _receive(self._child.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            code = self.close()
            seconds = f"{self._settings.seconds:g} seconds of processor time"
            if code == -signal.SIGPROF:
                raise Stopped(f"the extractor was stopped after {seconds}")
            raise Stopped(f"the extractor's process ended with {code}")
        if answer[:1] == b"!":
            raise Stopped(f"the extractor failed: {answer[1:].decode()}")
        return answer[1:].decode()

    def close(self) -> int | None:
        """Ends the child, if there is one; returns its exit code, which is negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()

    def _start(self) -> None:
        settings = json.dumps(dataclasses.asdict(self._settings))
        # The child finds this package where this process does, also where that was not installed but put on sys.path.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "scaling.corpus.extraction.extractor", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._child.stdout is not None
        ready = _receive(self._child.stdout)
        if ready != b"ready":
            code = self.close()
            raise ValueError(
                ready.decode() if ready else f"the process of the extractor ended with {code} before its first page"
            )


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The next message; None if the other side has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    data = stream.read(length := _LENGTH.unpack(head)[0])
    return data if len(data) == length else None


def _serve(settings: Settings, pages: IO[bytes], answers: IO[bytes]) -> None:
    """The child: answers each page with "=" and its text, or with "!" and what failed."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also in the middle of C code
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (settings.memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        _extract("<p>A first page loads what the others need.</p>", settings)
    except ImportError as error:
        _send(answers, f"{settings.extractor} cannot be used ({error}); pip install 'scaling[data]'".encode())
        return
    _send(answers, b"ready")
    while (page := _receive(pages)) is not None:
        signal.setitimer(signal.ITIMER_PROF, settings.seconds)
        try:
            answer = b"=" + _extract(page.decode(), settings).encode("utf-8", "replace")
        except (Exception, RecursionError) as error:
            answer = f"!{type(error).__name__} {error}".splitlines()[0][:300].encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, answer)


def _extract(page: str, settings: Settings) -> str:
    if settings.extractor == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        return extract_plain_text(page, main_content=True, comments=settings.comments)
    import trafilatura

    found = trafilatura.extract(page, include_comments=settings.comments, include_tables=settings.tables)
    return found or ""


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    _serve(Settings(**json.loads(sys.argv[1])), sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
