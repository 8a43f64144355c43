"""Chromium without a screen, by the WebDriver protocol and the standard library."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromedriver")
needs_chromium = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="needs Chromium: Debian's packages chromium and chromium-driver"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # of the protocol
ENTER, ESCAPE, SHIFT, TAB = "\ue007", "\ue00c", "\ue008", "\ue004"


class Browser:
    """A window. The methods wait for nothing; ``tests.serve.live.until`` does."""

    def __init__(self, driver, session):
        self._url = f"{driver}/session/{session}"

    def _call(self, path, fields=None):
        return call(f"{self._url}{path}", fields)

    def open(self, address):
        self._call("/url", {"url": address})

    def reload(self):
        self._call("/refresh", {})

    def run(self, script, *arguments):
        """What a script in the page returns."""
        return self._call("/execute/sync", {"script": f"return {script}", "args": arguments})

    def texts(self, selector):
        return self.run("[...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)

    def shown(self, selector):
        """Whether there is such an element that can be seen."""
        return self.run("[...document.querySelectorAll(arguments[0])].some(e => e.checkVisibility())", selector)

    def element(self, selector):
        return self._call("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector):
        self._call(f"/element/{self.element(selector)}/click", {})

    def type(self, selector, text):
        self._call(f"/element/{self.element(selector)}/value", {"text": text})

    def press(self, *keys):
        """Keys where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def size(self, width, height):
        self._call("/window/rect", {"width": width, "height": height})

    def picture(self, name):
        """Keeps a picture in the folder that the environment names, if any, for people to look at."""
        if folder := os.environ.get("SCALING_PICTURES"):
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(self._call("/screenshot")))


def call(url, fields=None, method=None):
    data = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as found:
        return json.load(found)["value"]


@contextlib.contextmanager
def chromium(profile):
    """A browser with a profile in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [shutil.which("chromedriver"), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    session = None
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                call(f"{driver}/status")
                break
            time.sleep(0.1)
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--window-size=1000,760", f"--user-data-dir={profile}",
        ]  # fmt: skip
        options = {"binary": shutil.which("chromium"), "args": arguments}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = call(f"{driver}/session", {"capabilities": capabilities})["sessionId"]
        yield Browser(driver, session)
    finally:
        if session is not None:
            with contextlib.suppress(OSError):
                call(f"{driver}/session/{session}", method="DELETE")
        process.terminate()
        process.wait()
