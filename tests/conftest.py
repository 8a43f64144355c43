"""8 virtual CPU devices, a private cache, and the fast/slow split for every test."""

import gc
import os
from collections import Counter

import jax
import pytest

from scaling.parallel.distributed import virtual_cpu_devices
from scaling.parallel.mesh import one_device
from tests.quick_compilation import xla_flags

DEVICES = 8


def pytest_configure(config: pytest.Config) -> None:
    # Objects of modules and of traced programs, which are millions, live on: the garbage collector need not visit them
    # so often.
    gc.set_threshold(100_000, 50, 100)
    with pytest.MonkeyPatch.context() as patch:  # programs that tests start choose their own devices
        patch.setenv("XLA_FLAGS", xla_flags())
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
        patch.setenv("PJRT_NPROC", "")  # so that it is put back, too
        patch.delenv("PJRT_NPROC")
        virtual_cpu_devices(DEVICES)
        jax.devices()  # reads the variables, once
    # Where in Python an operation comes from is a tenth of the time of tracing and lowering, and no test reads it.
    jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_collection_finish() -> None:
    gc.freeze()  # modules stay, so the garbage collector need not visit them at all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)
    # Files with much work first, so that no worker is left with one at the end (`--no-loadscope-reorder` keeps this).
    slow, all_of = Counter(), Counter(item.path for item in items)
    slow.update(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -all_of[item.path], str(item.path)))


@pytest.fixture(scope="module", autouse=True)
def _rarely_collected():
    """What a file of tests leaves is visited once."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def on_one_device():
    """For tests of what runs under a mesh. Tests of entry points do without: these set one themselves."""
    with jax.set_mesh(one_device()):
        yield


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token shards and compiled programs of tests never touch the user's cache."""
    before = os.environ.get("SCALING_CACHE")
    os.environ["SCALING_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if not jax.config.jax_compilation_cache_dir:
        # What one test has compiled, another test and the other workers need not: with pytest-xdist, each worker's
        # folder lies in one of the session.
        folder = tmp_path_factory.getbasetemp()
        shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    if before is None:
        del os.environ["SCALING_CACHE"]
    else:
        os.environ["SCALING_CACHE"] = before
