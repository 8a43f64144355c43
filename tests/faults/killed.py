"""``scaling`` in a process that kills itself just before its n-th file operation of a kind.

    python -m tests.faults.killed 'os.rename:orbax-checkpoint-tmp$:2' train --config=...

The operations are Python's audit events (``open`` only for writing). The product knows nothing of it.
"""

import os
import re
import signal
import sys


def operation(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path of an operation that changes a file or folder; None for anything else."""
    if event == "open":
        mode = arguments[1]
        return str(arguments[0]) if isinstance(mode, str) and set(mode) & set("wax+") else None
    if event in ("os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree"):
        return str(arguments[0])
    if event == "os.remove":  # relative to an open folder: inside of a deletion of the whole folder
        return ("inside/" if arguments[1] != -1 else "") + str(arguments[0])
    return None


def kill_at(point: str) -> None:
    """Kills this process before operation ``event:regular expression of the path:n``."""
    wanted, pattern, count = point.split(":")
    seen = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event != wanted or (path := operation(event, arguments)) is None or not re.search(pattern, path):
            return
        seen += 1
        if seen == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    kill_at(sys.argv[1])
    from scaling import cli

    sys.exit(cli.main(sys.argv[2:]))
