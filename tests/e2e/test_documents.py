"""The programs that the documents show get their answers from a server."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clover
from tests.support.servers import ROOT

SETTINGS = 'variant="tiny", energy_meter="modelled", carbon="static:300", ledger="off"'  # pinned: no profile to measure


@pytest.fixture
def server(tmp_path: Path, forked_zygotes: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[clover.Server]:
    monkeypatch.chdir(ROOT)
    settings: dict[str, Any] = {"variant": "tiny", "energy_meter": "modelled", "carbon": "static:300", "ledger": "off"}
    with clover.Server("fashion", port=0, grpc_port=0, cache_dir=str(tmp_path), **settings) as server:
        yield server


def example(page: str, holds: str) -> str:
    """The only Python example of a page that has these words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (found,) = (
        block for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if holds in block
    )
    return str(found)


def test_clients_get_answers(server: clover.Server, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("httpx", reason="needs the extra client (httpx)")
    programs = [example("python.md", "np.zeros")]
    for transport in ("http", "grpc"):
        with contextlib.suppress(
            ModuleNotFoundError, RuntimeError
        ):  # tritonclient, or what it needs for this, is not here
            importlib.import_module(f"tritonclient.{transport}")
            program = example("protocol.md", "tritonclient.http")  # over gRPC the same but for two words
            program = program.replace("tritonclient.http", f"tritonclient.{transport}")
            programs.append(program.replace("localhost:8080", "localhost:9000") if transport == "grpc" else program)
    for program in programs:
        program = program.replace("http://127.0.0.1:8080", server.url).replace("localhost:9000", server.grpc_target)
        exec(program.replace("localhost:8080", server.url.removeprefix("http://")), {})
    said = capsys.readouterr().out.splitlines()
    assert re.search(r" tiny \d", said[0])
    assert said[1].startswith("1 calls: ")
    assert len(said) == 1 + len(programs)
    assert all(re.search(r"b'[\d.]+:\d:[A-Z]", line) for line in said[2:])


@pytest.mark.usefixtures("forked_zygotes")
def test_a_server_inside_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = example("python.md", "images[0][:1]")
    pinned = program.replace('"fashion", port=0', f'"fashion", port=0, cache_dir={str(tmp_path)!r}, {SETTINGS}')
    assert pinned != program
    exec(pinned, {})
    said = capsys.readouterr().out
    assert "variant='tiny'" in said
    assert "http://127.0.0.1:" in said
