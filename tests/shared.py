"""Development data outside the repository; tests that need it are skipped where it is absent."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def needs_shared(path: str) -> pytest.MarkDecorator:
    """Skips a test unless ``SHARED / path`` exists."""
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f"needs {path} of the shared development data")
