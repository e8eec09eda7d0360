"""`clover family list`: what is listed of a family."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from clover import families
from clover.__main__ import main
from clover.cli.families import described
from tests.support.family_folder import write


def test_every_shipped_family_is_listed_with_how_it_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["family", "list", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(found) == families.shipped()
    fashion = found["fashion"]
    assert fashion["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 28, 28]}]
    assert fashion["variants"][-1] == "xlarge"
    assert fashion["cascades"]
    assert fashion["serve"] == "python -m clover serve fashion"
    assert main(["family", "list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in found)
    assert 'pip install "clover-inference[models]"' in text


def test_a_folder_is_listed_too_and_a_wrong_name_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "echo")
    assert main(["family", "list", str(folder), "fashoin"]) == 3
    out, err = capsys.readouterr()
    assert "echo: no description" in out
    assert f"python -m clover serve {shlex.quote(str(folder))}" in out
    assert "no family 'fashoin'" in err
    assert "fashion" in err
    assert main(["family", "list", "--jason"]) == 2


def test_random_weights_are_not_called_published_nor_a_cascade_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL", reason="pillow is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(["family", "list", "efficientnet", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["untrained"] == found["variants"]
    assert (found["published"], found["cascades"]) == ({}, False)
    text = " ".join(described(found).split())
    assert "accuracy b0, b1, b2, b3, b4, b5, b6, b7: UNTRAINED" in text
    assert "cascades no" in text
