"""What unit tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the sockets of a daemon."""
    with tempfile.TemporaryDirectory(prefix="clover-", dir="/tmp") as found:
        yield Path(found)
