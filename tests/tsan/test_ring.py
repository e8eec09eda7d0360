"""The ring under ThreadSanitizer, and in a model of late and reordered stores: see ring.c and tests/reference."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from tests.reference.explorer import explore
from tests.reference.ring_memory import Mutation, RingModel

pytestmark = pytest.mark.slow

HARNESS = Path(__file__).with_name("ring.c")
BATCHES = os.environ.get("CLOVER_TSAN_BATCHES", "3000")


def built(folder: Path, *more: str) -> Path:
    """Build the harness; skip where that is not possible."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = folder / "ring"
    options = (
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Wno-tsan",
        "-fsanitize=thread",
        "-pthread",
    )
    done = subprocess.run([compiler, *options, *more, "-o", program, HARNESS], capture_output=True, text=True)
    if "-ltsan" in done.stderr or "tsan" in done.stderr.partition("cannot find")[2]:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    return program


def ran(program: Path, batches: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, batches], capture_output=True, text=True, timeout=110)


def test_no_access_to_ring_or_slots_is_a_race(tmp_path: Path) -> None:
    done = ran(built(tmp_path), BATCHES)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{BATCHES} batches")


def test_a_ring_that_orders_nothing_is_found_out(tmp_path: Path) -> None:
    done = ran(built(tmp_path, "-DCLOVER_BROKEN"), "500")
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(("batches", "frames", "slots"), [(2, 1, 1), (3, 1, 2), (3, 2, 2), (4, 2, 3)])
def test_no_order_of_stores_harms(batches: int, frames: int, slots: int) -> None:
    found = explore(RingModel(batches, frames, slots))
    print(f"{batches} batches, {frames} frames, {slots} slots: {found.states} states")
    assert not found.violation, f"{found.violation}, after\n" + "\n".join(found.trace)
    assert found.states > 300
    assert found.ends.keys() == {f"{batches} answered"}


HARM: dict[Mutation, str] = {
    "no fence at the server": "sleeps",
    "no fence at the worker": "sleeps",
    "the head is no release": "of a",
    "the completion is no release": "of a slot",
    "the flag is looked at first": "sleeps",
    "sleeps without looking again": "sleeps",
    "the tail runs ahead": "of a frame",
}


@pytest.mark.parametrize("mutation", sorted(HARM))
def test_each_order_is_needed(mutation: Mutation) -> None:
    found = explore(RingModel(3, 1, 2, mutation))
    assert HARM[mutation] in found.violation, f"{mutation} is not noticed"
    assert len(found.trace) > 3


def test_every_mutation_is_tried() -> None:
    assert {"", *HARM} == set(get_args(Mutation))
