"""`clover infer`: which rows it sends, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="the client needs the extra `client`")

from clover.cli import infer
from clover.client import CallReceipt, ModelInfo, Result, TensorInfo
from clover.errors import Overloaded

RECEIPT = CallReceipt("small", 0.9, 2e-3, 3e-3, "modelled", "static", members={"variant": "small"})


class FakeClient:
    """Answers with what it is told to, and notes what it was asked."""

    datatype = "FP32"
    shape = (2,)
    names = ["one"]
    asked: list[Any] = []
    error: Exception | None = None

    def __init__(self, url: str, **options: Any) -> None:
        self.options = options

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def models(self) -> list[str]:
        return self.names

    def describe(self, model: str) -> ModelInfo:
        return ModelInfo(model, "1", (TensorInfo("x", self.datatype, self.shape),), ())

    def infer(self, model: str, inputs: Any, **asking: Any) -> Result:
        if self.error is not None:
            raise self.error
        self.asked.append((model, inputs, asking))
        outputs = {"y": np.array([[0.25, 0.75]] * len(inputs), np.float32)}
        return Result(model, "1", outputs, RECEIPT, (TensorInfo("y", "FP32", (2,), ("no", "yes")),))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    kind = type("FreshClient", (FakeClient,), {"asked": []})
    monkeypatch.setattr("clover.client.Client", kind)
    return kind


def test_arrays_are_rows(client: type[FakeClient], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", np.zeros(2, np.float32))
    np.save(tmp_path / "two.npy", np.ones((2, 2), np.float32))
    code = infer.main(["-", str(tmp_path / "one.npy"), str(tmp_path / "two.npy"), "--min-accuracy", "80"], {})
    assert code == 0
    [(model, rows, asking)] = client.asked
    assert (model, rows.shape, asking) == ("one", (3, 2), {"min_accuracy": 80.0, "full_receipt": True})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "yes\t0.25 0.75"
    assert lines[-1] == "small: 2 mJ (modelled), 3 ug CO2e (intensity static)"


def test_json_lists_are_rows_or_batches_and_what_is_neither_is_told_what_is_expected(
    client: type[FakeClient], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert infer.main(["one", "[0.3, -0.5]", " [[1, 2], [3, 4]]"], {}) == 0
    [(_, rows, _)] = client.asked
    np.testing.assert_array_equal(rows, [[0.3, -0.5], [1, 2], [3, 4]])
    assert infer.main(["one", "[1, 2]"], {}) == 0
    assert client.asked[-1][1].dtype == np.float64, "whole numbers are not refused for being written as such"
    client.datatype = "INT64"
    assert infer.main(["one", "[1, 2]"], {}) == 0
    assert client.asked[-1][1].dtype == np.int64
    np.save(tmp_path / "[x].npy", np.zeros(2, np.int64))
    assert infer.main(["one", "[x].npy"], {}) == 0
    for wrong, said in (
        ("[1, 2", "[1, 2 is no JSON list of numbers with rows of one length: "),
        ("[[1], [2, 3]]", "[[1], [2, 3]] is no JSON list of numbers with rows of one length: "),
        ("0.3,-0.5", "there is no file 0.3,-0.5; this model takes INT64 of shape [2], or with a leading row axis: "),
    ):
        capsys.readouterr()
        assert infer.main(["one", wrong], {}) == 1
        assert capsys.readouterr().err.startswith(f"clover infer: {said}")


def test_rows_may_be_longer_than_the_name_of_a_file(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    client.shape = (2000,)
    long = json.dumps([0.25] * 2000)
    assert infer.main(["one", long], {}) == 0
    np.testing.assert_array_equal(client.asked[-1][1], np.full((1, 2000), 0.25))
    capsys.readouterr()
    for wrong, said in ((long[:-1], " is no JSON list of numbers"), ("x" * 9000, "; this model takes FP32")):
        assert infer.main(["one", wrong], {}) == 1
        assert f"{wrong[:100]}... ({len(wrong)} characters){said}" in capsys.readouterr().err
    client.datatype, client.shape = "BYTES", (1,)
    assert infer.main(["one", "a text. " * 1000], {}) == 0
    assert client.asked[-1][1] == ["a text. " * 1000]


def test_files_and_texts_are_rows_of_a_model_that_takes_bytes(
    client: type[FakeClient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.datatype, client.shape = "BYTES", (1,)
    file = tmp_path / "a.jpg"
    file.write_bytes(b"1")
    assert infer.main(["one", str(file), "some text", "--json"], {}) == 0
    assert client.asked[0][1] == [file, "some text"]
    said = json.loads(capsys.readouterr().out)
    assert said["outputs"] == {"y": [[0.25, 0.75], [0.25, 0.75]]}
    assert said["receipt"] == {"variant": "small"}


def test_what_goes_wrong_is_one_line(client: type[FakeClient], capsys: pytest.CaptureFixture[str]) -> None:
    assert infer.main(["one", "missing.npy"], {}) == 1
    client.names = ["a", "b"]
    assert infer.main(["-", "x"], {}) == 1
    client.datatype, client.error = "BYTES", Overloaded("full")
    assert infer.main(["one", "x"], {}) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1:] == ["clover infer: 2 models are ready: name one of a, b", "clover infer: full"]
    assert infer.main([], {}) == 2


@pytest.mark.parametrize("name", ["empty.npy", "several.npz", "text.txt", "broken.npz", "nowhere.npy"])
def test_a_file_that_holds_no_array_is_named(
    client: type[FakeClient], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4")
    np.savez(tmp_path / "several.npz", x=np.ones(2))
    assert infer.main(["one", str(tmp_path / name)], {}) == 1
    assert name in capsys.readouterr().err


def test_an_address_that_is_none_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("localhost:8080", "http://[::1"):
        assert infer.main(["one", "x", "--url", url], {}) == 1
        assert f"http://HOST:PORT or https://HOST:PORT, not {url!r}" in capsys.readouterr().err


def test_without_httpx_there_is_a_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[2].startswith("client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert infer.main(["one", "x"], {}) == 3
    assert "pip install 'clover-inference[client]'" in capsys.readouterr().err
