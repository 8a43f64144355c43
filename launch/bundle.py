"""Packs the code and the plans that other machines run into one archive."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

from launch.jobs import Launch
from scaling.config import schema as cfg

CHECKOUT = Path(__file__).resolve().parents[1]


def make(launch: Launch, path: Path) -> str:
    """Writes a .tar.gz with the checkout of this package, including edits of tracked files, and the plans.

    Tests and docs stay here: they are most of the files, and no run reads them.

    Args:
        launch: its plans become ``jobs/<name>/plan.json``.
        path: of the archive, which is replaced as a whole or not at all.

    Returns:
        The commit, with a + if files were edited.

    Raises:
        ValueError: the package is not in a git checkout.
    """
    edited = _git(
        "stash", "create"
    ).strip()  # a commit of the edited files that leaves them as they are; empty if none is edited
    commit = _git("rev-parse", "HEAD").strip()
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    code = _run("archive", "--format=tar", edited or commit, "--", ".", ":!docs", ":!tests")
    with tarfile.open(partial, "w:gz", compresslevel=6) as archive:
        with tarfile.open(fileobj=io.BytesIO(code)) as tracked:
            for member in tracked:
                archive.addfile(member, tracked.extractfile(member) if member.isfile() else None)
        for run in launch.runs:
            data = cfg.to_json(run.config).encode()
            member = tarfile.TarInfo(f"jobs/{run.name}/plan.json")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    partial.replace(path)
    return commit + "+" * bool(edited)


def _git(*arguments: str) -> str:
    return _run(*arguments).decode()


def _run(*arguments: str) -> bytes:
    # Without the name of an author git refuses to make this commit.
    name = {f"GIT_{who}_{what}": "scaling" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, env=os.environ | name).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"the code for other machines comes from a git checkout, but {CHECKOUT} is not one; launch from one"
        ) from error
