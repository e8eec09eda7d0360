"""Steps in a worker: rows that cannot be taken are refused, the others answered, whatever shapes they come out with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from clover import families
from clover.runtime.memory.bytes_codec import pack_row, split_row
from clover.runtime.memory.slab import REFUSAL_BYTES, ROWS_REFUSED, Layout, Slab
from clover.types import FamilySpec
from clover.worker.batches import Batches, OutputError
from clover.worker.steps import LaneSteps
from tests.support.family_folder import fixture
from tests.support.pictures import empty_scans, png

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def picture(level: int, width: int = 40) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (width, 30), (level,) * 3).save(made, "PNG")
    return made.getvalue()


def slots(*numbers: int) -> NDArray[np.uint32]:
    return np.array(numbers, np.uint32)


class World:
    """A slab with pictures in it, and the steps of the family's larger variant."""

    def __init__(self, spec: FamilySpec) -> None:
        self.slab = Slab.create(Layout(spec, 8))
        self.batches = Batches(self.slab)
        self.scored: list[tuple[list[int], list[float]]] = []
        self.ran: list[tuple[int, ...]] = []
        self.steps = LaneSteps(spec, spec.variants[-1], self.slab, self.batches, self._score, 1)

    def _score(self, at: NDArray[np.uint32], answers: Any) -> None:
        self.scored.append((at.tolist(), answers[0][:, 1].tolist()))

    def put(self, slot: int, data: bytes) -> None:
        self.slab.put_bytes("input", 0, slot, pack_row([data]))

    def run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        self.ran.append(inputs[0].shape)
        mean = inputs[0].mean(axis=(1, 2, 3))
        return [np.stack([-mean, mean], axis=1)]

    def label(self, slot: int) -> bytes:
        return split_row(self.slab.get_bytes("output", 0, slot))[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World(fixture("shades"))
    yield made
    made.slab.close()


def test_rows_are_answered_and_scored_on_what_the_model_gave(world: World) -> None:
    world.put(2, picture(255))
    world.put(5, picture(0))
    assert world.steps.serve(slots(2, 5), world.run) == 0
    assert world.ran == [(2, 3, 16, 16)]
    assert [world.label(2), world.label(5)] == [b"bright", b"dark"]
    assert world.scored == [([2, 5], [1.0, -1.0])]


def test_a_bad_row_is_refused_and_its_neighbours_are_answered(world: World) -> None:
    for slot, data in ((1, b"junk"), (2, picture(255)), (3, b""), (4, picture(0))):
        world.put(slot, data)
    assert world.steps.serve(slots(1, 2, 3, 4), world.run) == ROWS_REFUSED
    assert world.ran == [(2, 3, 16, 16)]
    assert world.slab.refusals([1, 2, 3, 4]) == dict.fromkeys((1, 3), "the bytes are not a whole JPEG or PNG image")
    assert [world.label(2), world.label(4)] == [b"bright", b"dark"]
    world.put(1, picture(0))  # the slot is used again
    world.put(2, b"junk")
    assert world.steps.serve(slots(1, 2), world.run) == ROWS_REFUSED
    assert list(world.slab.refusals([1, 2])) == [2]
    assert world.steps.serve(slots(2), world.run) == ROWS_REFUSED
    assert len(world.ran) == 2  # without rows, no model


def test_a_costly_row_is_refused_by_itself(world: World) -> None:
    for slot, data in ((0, picture(255)), (1, empty_scans(900, 900, 1500)), (2, png(2000, 2000, 1)), (3, picture(0))):
        world.put(slot, data)
    assert world.steps.serve(slots(0, 1, 2, 3), world.run) == ROWS_REFUSED
    assert world.slab.refusals([0, 1, 2, 3]) == {
        1: "the JPEG has 1500 scans, more than the 32 allowed",
        2: "the image has 2000 x 2000 pixels, more than the 1000000 allowed",
    }
    assert [world.label(0), world.label(3)] == [b"bright", b"dark"]


def test_a_model_that_answers_wrongly_writes_nothing(world: World) -> None:
    world.put(0, picture(255))
    with pytest.raises(OutputError, match="'logits' has shape"):
        world.steps.serve(slots(0), lambda inputs: [np.zeros((1, 3), np.float32)])
    assert not world.slab.output(1)[0].any()


def test_rows_of_several_shapes_are_answered_shape_by_shape() -> None:
    spec = families.load_family(msgspec.structs.replace(_wide(), folder=fixture("shades").folder, digest=""))
    world = World(spec)
    widths = (40, 90, 40, 15)
    for slot, width in enumerate(widths):
        world.put(slot, picture(255 if slot % 2 else 0, width))
    assert world.steps.serve(slots(0, 1, 2, 3), world.run) == 0
    assert sorted(world.ran) == [(1, 3, 10, 5), (1, 3, 10, 30), (2, 3, 10, 14)]
    assert [world.label(slot) for slot in range(4)] == [b"dark", b"bright"] * 2
    world.slab.close()


def _wide() -> FamilySpec:
    """Return `shades` with pictures of one height and any width."""
    shades = fixture("shades")
    assert shades.steps is not None
    before = ({"step": "decode-image"}, {"step": "resize", "height": 10, "max_width": 100}, {"step": "normalise"})
    pixels = shades.variants[0].inputs[0]
    variants = tuple(msgspec.structs.replace(one, inputs=(), outputs=()) for one in shades.variants)
    return msgspec.structs.replace(
        shades,
        inputs=(msgspec.structs.replace(pixels, shape=(3, 10, -1), max_shape=(3, 10, 100)),),
        outputs=shades.variants[0].outputs,
        steps=msgspec.structs.replace(shades.steps, before=before),
        variants=variants,
        confidence=None,
    )


def test_a_made_up_row_is_taken_through_steps_and_model(world: World) -> None:
    world.steps.try_out(world.run)
    assert world.ran == [(1, 3, 16, 16)]
    with pytest.raises(OutputError):
        world.steps.try_out(lambda inputs: [])


def test_what_a_worker_says_of_a_row_is_bounded_and_printable(world: World) -> None:
    world.slab.refuse([3], {0: "x\n\x1b[31m" + "ä" * REFUSAL_BYTES})
    (said,) = world.slab.refusals([3]).values()
    assert said.isprintable()
    assert said.startswith("x??[31m")
    assert len(said.encode()) <= REFUSAL_BYTES + 2
    refusal = world.slab.layout.refusal
    assert refusal is not None
    world.slab._words[3, refusal.length_word] = 1 << 31  # a worker is not trusted
    assert len(world.slab.refusals([3])[3]) <= REFUSAL_BYTES
