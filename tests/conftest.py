"""8 virtual CPU devices, a private cache, and the fast/slow split for every test."""

import os

import jax
import pytest

DEVICES = 8


def pytest_configure(config: pytest.Config) -> None:
    # Not by environment variables: programs that tests start choose their own devices.
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
    jax.config.update("jax_num_cpu_devices", DEVICES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token shards and compiled programs of tests never touch the user's cache."""
    before = os.environ.get("SCALING_CACHE")
    os.environ["SCALING_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["SCALING_CACHE"]
    else:
        os.environ["SCALING_CACHE"] = before
