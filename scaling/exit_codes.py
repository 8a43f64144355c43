"""Exit codes of the ``scaling`` command, in one place (also listed in ``scaling --help``)."""

import errno
import signal

OK = 0
BUG = 1  # a bug: Python's own code for an uncaught exception
USAGE = 2  # a bad option, knob, file or value: one sentence on stderr
DIVERGED = 3  # the loss became NaN or infinite
IO = 74  # EX_IOERR of BSD's sysexits.h: disk full, broken file system
HUNG = 75  # EX_TEMPFAIL of sysexits.h: no step ended in time, or another process of the run is gone; start again
FAULTY = 76  # a step computed twice gave two results: a device or the memory of one is faulty; nothing was saved
SIGHUP = 129  # 128 + 1: the terminal or the connection is gone; stopped after saving a checkpoint
SIGINT = 130  # 128 + 2: stopped by ctrl-C, after saving a checkpoint
SIGUSR1 = 138  # 128 + 10: a scheduler's warning; stopped after saving a checkpoint
SIGUSR2 = 140  # 128 + 12: the same
SIGPIPE = 141  # 128 + 13: the reader of what the verb prints went away before all was printed, as in `| head`
SIGTERM = 143  # 128 + 15: stopped by the scheduler, after saving a checkpoint
SIGXCPU = 152  # 128 + 24: the limit of CPU time is near; stopped after saving a checkpoint
# signals at which a training saves and ends -> its exit code
OF_SIGNAL = {
    signal.SIGHUP: SIGHUP,
    signal.SIGINT: SIGINT,
    signal.SIGUSR1: SIGUSR1,
    signal.SIGUSR2: SIGUSR2,
    signal.SIGTERM: SIGTERM,
    signal.SIGXCPU: SIGXCPU,
}

# Return codes of a process that a signal stopped: its exit code, or the negative signal number (as of subprocess).
STOPPED = (*OF_SIGNAL.values(), *(-number for number in OF_SIGNAL))


def of(error: BaseException) -> int:
    """The exit code of an exception that leaves the command."""
    if isinstance(error, KeyboardInterrupt):
        return SIGINT
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, OSError) and not isinstance(
        error, FileNotFoundError | PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError
    ):
        # errno is None where code raises OSError("sentence") itself. A read-only file system counts as a missing
        # permission.
        return USAGE if error.errno == errno.EROFS else IO
    return USAGE if isinstance(error, ValueError | OSError) else BUG
