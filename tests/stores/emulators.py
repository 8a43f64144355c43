"""Emulated object stores in this process, each behind a ``Proxy``; `make engines` installs what they need."""

import contextlib
import importlib.util
import logging
import os
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from scaling import object_store
from tests.stores.proxy import Proxy

BUCKET = "bucket"
SCHEMES = ("gs", "s3")
_PACKAGES = {"gs": "gcp_storage_emulator", "s3": "moto"}


def missing(scheme: str) -> str:
    """Why a store cannot be emulated here; "" = it can."""
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        return f"the emulator of {scheme}:// is not installed; `make engines` does it"
    return ""


def needs(scheme: str) -> pytest.MarkDecorator:
    reason = missing(scheme)
    return pytest.mark.skipif(bool(reason), reason=reason or "it is here")


def variables(scheme: str, proxy: Proxy) -> dict[str, str]:
    """The environment in which a program finds the store."""
    if scheme == "gs":
        return {"TENSORSTORE_GCS_HTTP_URL": proxy.url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def emulated(scheme: str) -> Iterator[Proxy]:
    """A store with one empty bucket; ``os.environ`` leads to it inside of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        if scheme == "gs":
            from gcp_storage_emulator.server import create_server

            logging.getLogger("api").setLevel(logging.CRITICAL)
            logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
            server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
            server.start()
            stack.callback(server.stop)
        else:
            from moto.server import ThreadedMotoServer

            logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
            server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
            server.start()
            stack.callback(server.stop)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(
                    urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"), timeout=10
                )
        proxy = Proxy(f"127.0.0.1:{port}", scheme == "gs")
        stack.callback(proxy.close)
        before = dict(os.environ)
        os.environ |= variables(scheme, proxy)
        object_store.forget()
        try:
            yield proxy
        finally:
            for name in variables(scheme, proxy):
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]


def download(url: str, folder: Path) -> Path:
    """Copies all objects of a run to a local folder, which is replaced; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    source = epath.Path(url)
    for name in source.names() if source.exists() else []:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((source / name).read_bytes())
    return folder
