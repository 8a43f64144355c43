"""Calls ``gcloud`` for queued resources of Cloud TPU, with the flags of its reference.

https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources
"""

import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from launch.remote import MARK
from launch.slices import Slices

NOT_FOUND, EXISTS, QUOTA, REFUSED, LOST = "not found", "exists", "quota", "refused", "lost"
# kind of an error -> texts in gcloud's message that tell it; kinds are tried in this order
_SIGNS = (
    (NOT_FOUND, ("NOT_FOUND", "was not found", "could not be found")),
    (EXISTS, ("ALREADY_EXISTS", "already exists")),
    (QUOTA, ("RESOURCE_EXHAUSTED", "Quota", "quota", "no more capacity")),
    (
        REFUSED,
        ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "unrecognized arguments", "Reauthentication",
         "Invalid choice", "do not currently have an active account"),
    ),
)  # fmt: skip
_BASE = ("gcloud", "compute", "tpus", "queued-resources")
_OWN = re.compile(r"^ERROR: \(gcloud\..*(?:\n[ \t]+.*)*", re.MULTILINE)  # gcloud's own lines among what machines print
_SECONDS = 900.0  # limit of one call; the installation takes longest


class GcloudError(Exception):
    """A call failed; ``kind`` is one of the kinds above, and decides what is done."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Calls for one project and zone.

    Attributes:
        zone: of the TPUs.
        project: of Google Cloud; empty = the default of gcloud.
    """

    zone: str
    project: str = ""

    def create(
        self,
        name: str,
        slices: Slices,
        runtime_version: str,
        labels: dict[str, str],
        spot: bool = False,
        reserved: bool = False,
        service_account: str = "",
    ) -> list[str]:
        """Arguments that request slices."""
        several = [f"--node-count={slices.count}", f"--node-prefix={name}"]
        command = self._command("create", name)
        command += several if slices.count > 1 else [f"--node-id={name}"]
        command += [*slices.flags, f"--runtime-version={runtime_version}"]
        command += ["--spot"] * spot + ["--reserved"] * reserved
        command += [f"--service-account={service_account}"] if service_account else []
        return [*command, f"--labels={','.join(f'{k}={v}' for k, v in labels.items())}", "--async"]

    def describe(self, name: str) -> list[str]:
        return [*self._command("describe", name), "--format=json"]

    def list_all(self) -> list[str]:
        return [*self._command("list"), "--format=json"]

    def delete(self, name: str) -> list[str]:
        """Arguments that delete a request and its machines."""
        return [*self._command("delete", name), "--force", "--async"]

    def copy(self, name: str, path: str, target: str) -> list[str]:
        """Arguments that copy a file to all machines."""
        return [*self._command("scp", path, f"{name}:{target}"), *self._everywhere()]

    def call(self, name: str, command: Sequence[str], everywhere: bool = True) -> list[str]:
        """Arguments that run a command on all machines, or on the first."""
        where = self._everywhere() if everywhere else ["--node=0", "--worker=0", "--strict-host-key-checking=no"]
        return [*self._command("ssh", name), *where, f"--command={shlex.join(command)}"]

    def _command(self, verb: str, *positional: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return [*_BASE, verb, *positional, f"--zone={self.zone}", *project, "--quiet"]

    @staticmethod
    def _everywhere() -> list[str]:
        return ["--node=all", "--worker=all", "--strict-host-key-checking=no"]


def run(arguments: Sequence[str], seconds: float = _SECONDS) -> str:
    """Runs a call and returns what it prints.

    Raises:
        GcloudError: the call failed.
        ValueError: gcloud is not installed.
    """
    try:
        found = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            start_new_session=True,  # so that ctrl-C reaches only the launcher
        )
    except FileNotFoundError:
        raise ValueError("gcloud is not installed; see https://cloud.google.com/sdk/docs/install") from None
    except subprocess.TimeoutExpired:
        raise GcloudError(LOST, f"no answer in {seconds:.0f} s") from None
    if found.returncode:
        text = found.stderr.strip() or found.stdout.strip() or f"exit code {found.returncode}"
        said = text
        if arguments[len(_BASE)] in ("ssh", "scp"):  # only gcloud's own lines, not what machines print
            said = "\n".join(_OWN.findall(text))
        kind = next((kind for kind, signs in _SIGNS if any(sign in said for sign in signs)), LOST)
        raise GcloudError(kind, text.splitlines()[-1][:400])
    return found.stdout


def state(gcloud: Gcloud, name: str) -> tuple[str, str]:
    """State of a request, such as ACTIVE, and the reason if it failed; both are empty if there is no such request.

    Raises:
        GcloudError: gcloud failed.
    """
    try:
        found = _parsed(run(gcloud.describe(name)) or "{}")
    except GcloudError as error:
        if error.kind == NOT_FOUND:
            return "", ""
        raise
    values = found.get("state", {})
    reason = values.get("failedData", {}).get("error", {}).get("message", "") or values.get("stateInitiator", "")
    return str(values.get("state", "")), reason


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise GcloudError(LOST, f"gcloud's answer is not JSON: {error}") from None


def names(gcloud: Gcloud) -> list[str]:
    """Names of all requests of the zone that are not being deleted."""
    found = _parsed(run(gcloud.list_all()) or "[]")
    kept = [one for one in found if one.get("state", {}).get("state") != "DELETING"]
    return [str(one.get("name", "")).rpartition("/")[2] for one in kept]


def answers(printed: str) -> list[dict[str, Any]]:
    """The answers of ``launch.remote`` in the output of ssh, one for each machine."""
    found = []
    for line in printed.splitlines():
        if MARK in line:
            try:
                found.append(json.loads(line.partition(MARK)[2]))
            except ValueError:
                raise GcloudError(LOST, "an answer was cut short") from None
    return found
