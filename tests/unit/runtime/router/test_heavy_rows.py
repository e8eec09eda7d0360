"""Rows that take long: they delay neither the rows of their batch nor other clients by more than their share."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from clover.runtime.memory.bytes_codec import pack_row
from clover.runtime.memory.rows import RowWeights
from tests.support.family_folder import fixture
from tests.support.pictures import png
from tests.support.router_fixture import House, family

pytest.importorskip("PIL.Image", reason="pillow is not installed")


def picture(megapixels: int) -> bytes:
    """Return a PNG of one pixel whose head says that it has many."""
    return png(1, 1)[:16] + struct.pack(">II", 1 << 10, megapixels << 10) + png(1, 1)[24:]


@pytest.fixture
def house() -> Iterator[House]:
    shades = fixture("shades")  # which takes pictures of a megapixel
    assert shades.steps is not None
    before = ({"step": "decode-image"}, *shades.steps.before[1:])
    made = House(replace(shades, steps=replace(shades.steps, before=before)), slots=64)
    yield made
    made.slab.close()


def ask(house: House, *sizes: int, client: int = 0) -> list[int]:
    """Submit pictures of so many megapixels in one request; return their slots."""
    ticket = house.router.open(len(sizes), client)
    for slot, size in zip(ticket.slots, sizes, strict=True):
        house.slab.put_bytes("input", 0, slot, pack_row([picture(size)]))
    house.router.submit(ticket, house.done.append)
    return list(ticket.slots)


def test_a_picture_of_many_pixels_is_in_no_batch_with_others_that_it_would_delay(house: House) -> None:
    (worker, *_) = house.route(0, shares=(1.0, 0.0), max_batch=8)
    slots = ask(house, 0, 12, 0, 12, 12, 12, 39, 0)
    house.loop.turn()
    assert [rows for _, rows in worker.ring.batches] == [slots[:5], slots[5:6]]
    left = []
    while worker.ring.batches:
        left.append(worker.ring.batches[0][1])
        house.complete(worker)
        house.loop.turn()
    assert left == [slots[:5], slots[5:6], slots[6:7], slots[7:]]
    assert len(house.done) == 1


def test_a_client_of_large_pictures_leaves_the_others_their_turns(house: House) -> None:
    (worker, *_) = house.route(0, shares=(1.0, 0.0), max_batch=1)
    heavy = ask(house, *[39] * 8, client=1)
    light = ask(house, *[0] * 20, client=2)
    left: list[int] = []
    house.loop.turn()
    while worker.ring.batches and len(left) < 22:
        left += worker.ring.batches[0][1]
        house.complete(worker)
        house.loop.turn()
    assert left[0] == heavy[0]
    assert set(left[1:21]) == set(light)  # the next large one comes after forty others


def test_rows_of_a_family_without_such_steps_are_not_looked_at() -> None:
    house = House(family(), slots=8)
    assert not RowWeights(house.slab, house.spec).on
    house.slab.close()
