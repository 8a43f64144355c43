"""A store of each kind for the tests of a file, with an empty folder for each test."""

import os

import pytest

from scaling import object_store
from tests.stores.emulators import BUCKET, SCHEMES, emulated, missing
from tests.stores.proxy import Plan

# The emulators run in this process, which is silent for seconds while it compiles.
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")


@pytest.fixture(scope="session", params=SCHEMES)
def store(request):
    """The proxy in front of an emulator."""
    if reason := missing(request.param):
        pytest.skip(reason)
    with emulated(request.param) as proxy:
        proxy.scheme = request.param
        yield proxy


@pytest.fixture
def url(store, request):
    """A folder that does not exist yet, in a store without faults."""
    store.plan(Plan())
    store.delay, store.status, store.gone, store.denied_writes = 0.0, 0, False, False
    store.reset_counts()
    object_store.set_patience(60.0)
    return f"{store.scheme}://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}"
