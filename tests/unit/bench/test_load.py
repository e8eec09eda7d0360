"""The load generator: whose answer it is."""

from __future__ import annotations

import json

import pytest

from bench.load import bears


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "as json.dumps writes it"])
def test_an_answer_is_its_requests_however_its_json_is_spaced(separators: tuple[str, str]) -> None:
    answer = json.dumps({"model_name": "toy", "id": "row-7", "outputs": []}, separators=separators).encode()
    assert bears(answer, "row-7")
    assert not bears(answer, "row-77")
    assert not bears(answer, "row-")
