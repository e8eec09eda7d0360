"""Times of the chain are exact in these tests; `Jitter` has tests of its own."""

from __future__ import annotations

import pytest

from clover.carbon import chained


@pytest.fixture(autouse=True)
def _exact_times(monkeypatch: pytest.MonkeyPatch) -> None:
    jitter = chained.Jitter
    monkeypatch.setattr(chained, "Jitter", lambda draw=None: jitter(lambda: 0.0))
