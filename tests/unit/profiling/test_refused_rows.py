"""A row of the evaluation set that a step refuses ends the measurement with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from clover.errors import ProfileError
from clover.profiling.driver import Driver
from clover.runtime.memory.slab import ROWS_REFUSED, Layout, Slab
from tests.support.family_folder import fixture


def test_a_refused_row_is_named() -> None:
    slab = Slab.create(Layout(fixture("shades"), 4))
    missing: Any = None
    driver = Driver(missing, slab, missing, 1.0)
    slab.refuse([0, 1], {1: "no picture"})
    with pytest.raises(ProfileError, match="measured with is refused: no picture"):
        driver._check(ROWS_REFUSED, [0, 1])
    with pytest.raises(ProfileError, match="the model failed"):
        driver._check(1, [0, 1])
    driver._check(0, [0, 1])
    slab.close()
