"""What the log ends with."""

from __future__ import annotations

import pytest

from clover.server.totals import closing_words


@pytest.mark.parametrize(
    ("light", "last"),
    [
        (True, "too little load to save on: idle is 90 %"),
        (False, "since the start: too little load to save on: idle is 90 %"),
    ],
)
def test_the_log_ends_with_what_was_idle_and_begins_with_it_at_a_light_load(light: bool, last: str) -> None:
    idle = {"light": light, "words": "too little load to save on: idle is 90 %"}
    assert closing_words([], {}, idle)[-1] == last
    assert closing_words([], {}, None) == []
