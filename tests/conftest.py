"""8 virtual CPU devices, a private cache, and the fast/slow split for every test."""

import os

import jax
import pytest

from scaling.parallel.distributed import virtual_cpu_devices
from scaling.parallel.mesh import one_device
from tests.quick_compilation import xla_flags

DEVICES = 8


def pytest_configure(config: pytest.Config) -> None:
    with pytest.MonkeyPatch.context() as patch:  # programs that tests start choose their own devices
        patch.setenv("XLA_FLAGS", xla_flags())
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
        patch.setenv("PJRT_NPROC", "")  # so that it is put back, too
        patch.delenv("PJRT_NPROC")
        virtual_cpu_devices(DEVICES)
        jax.devices()  # reads the variables, once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


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
