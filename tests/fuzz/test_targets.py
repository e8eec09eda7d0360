"""What every run of the tests looks at: corpora, their neighbours, and that compiled modules do what their source does.

`make fuzz` searches on, guided by branches.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import engine, replay
from tests.fuzz.engine import MOST_BYTES, NAMES, Mutator, corpus, load

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ("front_end", "oip", "grpc_calls")
"""Targets whose product is compiled."""


def target(name: str) -> engine.Target:
    try:
        return load(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("name", NAMES)
def test_no_kept_input_and_none_near_one_breaks_a_promise(name: str) -> None:
    check = target(name).check
    for case in replay.cases(name):
        assert isinstance(check(case), str), case


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("CLOVER_SOURCE") == "1", reason="this is the source")
def test_compiled_modules_do_what_their_source_does() -> None:
    names = [name for name in COMPILED if target(name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.replay", ",".join(names)],
        cwd=ROOT,
        env={**os.environ, "CLOVER_SOURCE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [line for name in names for line in engine.digest(name, replay.cases(name))]


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_its_bytes_alone(name: str) -> None:
    check = target(name).check
    chosen = replay.cases(name)[:: max(1, len(replay.cases(name)) // 8)]
    assert [check(case) for case in chosen] == [check(case) for case in reversed(chosen)][::-1]


@pytest.mark.parametrize("name", NAMES)
def test_corpora_are_small_and_written_as_they_are_read(name: str) -> None:
    kept = corpus(name)
    assert len(kept) == len(set(kept))
    assert max(map(len, kept), default=0) <= MOST_BYTES
    text = (engine.HERE / "corpora" / f"{name}.txt").read_text(encoding="ascii")
    assert text == "".join(f"{case!r}\n" for case in kept)


def test_mutation_is_a_function_of_its_seed_and_gets_everywhere() -> None:
    def some(seed: int) -> list[bytes]:
        return list(islice(Mutator([b"GET / HTTP/1.1\r\n", b"abc"], (b"\0token",), seed), 300))

    assert some(1) == some(1) != some(2)
    assert len(set(some(1))) > 250
    assert any(b"\0token" in case for case in some(1))
    assert max(map(len, some(1))) <= MOST_BYTES


def test_a_broken_promise_is_found_written_and_ends_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(data: bytes) -> str:
        assert b"!" not in data, "a promise"
        return hashlib.blake2b(data, digest_size=2).hexdigest()

    broken = SimpleNamespace(DICTIONARY=(b"!",), seeds=lambda: [b"fine"], check=check)
    monkeypatch.setattr(command, "load", lambda name: broken)
    monkeypatch.setattr(command, "corpus", lambda name: [])
    monkeypatch.setattr(command, "BUILD", tmp_path)
    count, trouble = command.by_mutation("broken", 60.0)
    assert count >= 1
    assert trouble.startswith("AssertionError: a promise")
    assert b"!" in (tmp_path / "broken-crash").read_bytes()
