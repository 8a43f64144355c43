"""Output that cannot be written ends only verbs that have nothing but their output."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import exit_codes
from scaling.output import ReaderGone, Stdout, Stream
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[1]
# A verb that prints more than a pipe holds, as `begin` is told to treat it.
VERB = """
import sys
from scaling import cli, output
from scaling.commands import sizes
def verb(options):
    output.begin(output.Stdout[sys.argv[1]])
    options.stdout = output.Stdout[sys.argv[1]]
    for _ in range(30_000):
        print("a line", "of a verb\\u2028\\udcff")
        print("of progress", file=sys.stderr)
    open("done", "w").close()
sizes.run = verb
sys.exit(cli.main(["sizes"]))
"""


def dead_pipe():
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@pytest.fixture
def run(tmp_path):
    """Runs the verb; returns (exit code, whether it did its work, stderr)."""

    def run(kind, stdout, stderr=subprocess.PIPE, encoding="utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", VERB, kind.name],
            cwd=tmp_path,
            stdout=stdout,
            stderr=stderr,
            env=environment() | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
            check=False,
        )
        return done.returncode, (tmp_path / "done").exists(), (done.stderr or b"").decode().replace("of progress\n", "")

    return run


@pytest.mark.parametrize(
    ("kind", "code", "works"),
    [(Stdout.LOG, 0, True), (Stdout.COPY, exit_codes.SIGPIPE, True), (Stdout.RESULT, exit_codes.SIGPIPE, False)],
)
def test_a_reader_that_goes_ends_only_what_has_no_other_result(run, kind, code, works):
    pipe = dead_pipe()
    assert run(kind, pipe)[:2] == (code, works)
    assert run(kind, pipe, subprocess.STDOUT)[:2] == (code, works)
    os.close(pipe)


@pytest.mark.parametrize(
    ("kind", "code"), [(Stdout.LOG, 0), (Stdout.COPY, exit_codes.IO), (Stdout.RESULT, exit_codes.IO)]
)
def test_a_full_disk_under_the_output_is_told(run, kind, code):
    with Path("/dev/full").open("w") as full:
        got, works, err = run(kind, full)
        assert (got, works) == (code, kind is not Stdout.RESULT)
        assert os.strerror(errno.ENOSPC) in err and "standard output" in err
        assert run(Stdout.LOG, subprocess.DEVNULL, full)[:2] == (0, True)


def test_what_the_output_cannot_spell_is_written_otherwise(run):
    assert run(Stdout.RESULT, subprocess.DEVNULL, encoding="ascii") == (0, True, "")
    assert run(Stdout.RESULT, subprocess.DEVNULL, encoding="latin-1") == (0, True, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_given_to_other_files(tmp_path, closed):
    """Else what is printed would stand in the first file that the verb opens."""
    program = VERB.replace("for _", "file = open('first', 'w'); assert file.fileno() > 2\n    for _", 1)
    (tmp_path / "verb.py").write_text(program)
    command = f"{sys.executable} verb.py LOG {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)}, check=False)
    assert (done.returncode, (tmp_path / "first").read_text(), (tmp_path / "done").exists()) == (0, "", True)
    done = subprocess.run(
        f"{sys.executable} -m scaling sizes >&-",
        shell=True,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == exit_codes.IO and b"standard output" in done.stderr


def test_a_stream_raises_once():
    """What stays in the buffer is written again when Python ends, and would be a second error."""
    pipe = dead_pipe()
    stream = io.TextIOWrapper(io.BufferedWriter(Stream(pipe, ends=True)))
    stream.write("x")
    with pytest.raises(ReaderGone):
        stream.flush()
    stream.flush()
    os.close(pipe)


def test_a_terminal_that_somebody_made_non_blocking_is_waited_for():
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.signal(signal.SIGALRM, lambda *_: os.read(reads, 1 << 20))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        stream = io.BufferedWriter(Stream(writes, ends=True))
        stream.write(b"x" * (1 << 18))
        stream.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.close(reads)
        os.close(writes)
