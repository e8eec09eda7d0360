"""The load generator: whose answer it is."""

from __future__ import annotations

import gc
import json

import pytest

from bench.load import bears, no_full_collections


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "as json.dumps writes it"])
def test_an_answer_is_its_requests_however_its_json_is_spaced(separators: tuple[str, str]) -> None:
    answer = json.dumps({"model_name": "toy", "id": "row-7", "outputs": []}, separators=separators).encode()
    assert bears(answer, "row-7")
    assert not bears(answer, "row-77")
    assert not bears(answer, "row-")


def test_while_any_load_runs_only_what_is_young_is_collected() -> None:
    before = gc.get_threshold()
    with no_full_collections:
        with no_full_collections:
            assert gc.get_threshold()[:2] == before[:2]
            assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_threshold()[2] > 1_000_000, "another load runs still"
    assert gc.get_threshold() == before
