"""Times of the chain are exact in these tests; `clover.carbon.jitter` has tests of its own."""

from __future__ import annotations

import pytest

from clover.carbon import jitter


@pytest.fixture(autouse=True)
def _exact_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.carbon.chained.Jitter", jitter.no_jitter)
