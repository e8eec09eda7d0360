from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clover.runtime.memory.bytes_codec import pack_row
from clover.runtime.memory.slab import NO_MEMORY, Layout, Slab
from clover.types import FamilySpec, TensorSpec, VariantSpec
from clover.worker.batches import Batches, OutputError
from clover.worker.loop import MODEL_FAILED, ResidentLane, Scores, ServerChannel, WorkerLoop, status_of

SPEC = FamilySpec(
    name="f",
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=(2, 3)),
        TensorSpec(name="wave", datatype="INT16", shape=(3, -1), max_shape=(3, 8)),
        TensorSpec(name="text", datatype="BYTES", shape=(2,), max_bytes=40),
    ),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=(2,)),
        TensorSpec(name="path", datatype="INT32", shape=(-1,), max_shape=(4,)),
        TensorSpec(name="word", datatype="BYTES", shape=(-1,), max_shape=(2,), max_bytes=20),
    ),
    variants=(VariantSpec(name="v", loader="m:f"),),
)


@pytest.fixture
def slab() -> Iterator[Slab]:
    made = Slab.create(Layout(SPEC, 8))
    for slot in range(8):
        made.input(0)[slot] = slot
        made.set_dims("input", 1, slot, (3, 5))
        made.input(1)[slot, :, :5] = slot
        made.input(1)[slot, :, 5:] = -1
        made.put_bytes("input", 2, slot, pack_row([b"a" * slot, "é"]))
    yield made
    made.close()


def slots(*numbers: int) -> NDArray[np.uint32]:
    return np.array(numbers, np.uint32)


@pytest.mark.parametrize("numbers", [(3,), (2, 3), (2, 3, 4, 5), (5, 1), (1, 2, 4), (4, 3, 2), (1, 3, 2, 4)])
def test_gather_gives_the_rows_in_order(slab: Slab, numbers: tuple[int, ...]) -> None:
    x, wave, text = Batches(slab).gather(slots(*numbers))
    assert x.shape == (len(numbers), 2, 3)
    assert wave.shape == (len(numbers), 3, 5)
    for array in (x, wave):
        assert array.flags.c_contiguous
        assert [row.ravel()[0] for row in array] == list(numbers)
        assert (array == array[:, :1, :1]).all()
    assert text.shape == (len(numbers), 2)
    assert text[:, 0].tolist() == [b"a" * slot for slot in numbers]
    assert set(text[:, 1].tolist()) == {"é".encode()}


def test_consecutive_rows_are_not_copied(slab: Slab) -> None:
    assert np.shares_memory(Batches(slab).gather(slots(2, 3, 4))[0], slab.input(0))
    assert not np.shares_memory(Batches(slab).gather(slots(2, 4))[0], slab.input(0))


def test_scattered_rows_can_be_gathered_where_they_will_be_gathered_again(slab: Slab) -> None:
    batches = Batches(slab)
    (staged,) = batches.stage(4)  # of inputs of fixed shape alone
    assert staged.shape == (4, 2, 3)
    for numbers in ((5, 1), (7, 0, 3, 2)):
        x, wave, _ = batches.gather(slots(*numbers))
        assert np.shares_memory(x, staged)
        assert x.flags.c_contiguous
        assert [row.ravel()[0] for row in x] == list(numbers)
        assert [row.ravel()[0] for row in wave] == list(numbers)
    assert np.shares_memory(batches.gather(slots(2, 3))[0], slab.input(0)), "rows in a row need no gathering"
    with pytest.raises(IndexError, match="beyond"):
        batches.gather(slots(8, 1))


def good(rows: int) -> list[Any]:
    return [
        np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        np.ones((rows, 3), np.int32),
        np.array([[b"x"]] * rows, dtype=object),
    ]


@pytest.mark.parametrize("numbers", [(3,), (2, 3, 4), (6, 1)])
def test_scatter_writes_every_row(slab: Slab, numbers: tuple[int, ...]) -> None:
    Batches(slab).scatter(slots(*numbers), good(len(numbers)))
    for row, slot in enumerate(numbers):
        assert slab.output(0)[slot].tolist() == [2 * row, 2 * row + 1]
        assert slab.dims("output", 1, slot) == (3,)
        assert slab.output(1)[slot].tolist() == [1, 1, 1, 0]
        assert slab.dims("output", 2, slot) == (1,)
        assert slab.get_bytes("output", 2, slot) == b"\x01\0\0\0x"


@pytest.mark.parametrize(
    ("index", "answer", "why"),
    [
        (0, np.zeros((2, 3), np.float32), "shape"),
        (0, np.zeros((3, 2), np.float32), "shape"),
        (0, np.zeros((2, 2), np.float64), "float64"),
        (0, [[0.0, 0.0]] * 2, "list"),
        (1, np.zeros((2, 5), np.int32), "shape"),
        (2, np.zeros((2, 1), np.int32), "not an array of bytes"),
        (2, np.array([[3], [4]], dtype=object), "int"),
        (2, np.array([["x" * 30]] * 2), "more than its 20"),
    ],
)
def test_wrong_answers_write_nothing(slab: Slab, index: int, answer: Any, why: str) -> None:
    answers = good(2)
    answers[index] = answer
    with pytest.raises(OutputError, match=why):
        Batches(slab).scatter(slots(0, 1), answers)
    assert not slab.output(0).any()
    assert not slab.output(1).any()


def test_answers_that_cannot_be_scored_write_nothing(slab: Slab) -> None:
    """What a cascade had before lies in these slots, and is kept where the next variant fails."""
    batches = Batches(slab)
    batches.scatter(slots(0, 1), good(2))
    before = slab.output(0).copy()

    def refuse() -> None:
        raise ValueError("no score")

    other = [good(2)[0] + 7.0, *good(2)[1:]]
    with pytest.raises(ValueError, match="no score"):
        batches.scatter(slots(0, 1), other, refuse)
    assert slab.output(0).tolist() == before.tolist()
    batches.scatter(slots(0, 1), other, lambda: None)
    assert slab.output(0)[0].tolist() == [7.0, 8.0]


def test_a_worker_whose_score_fails_leaves_its_slots_alone(slab: Slab) -> None:
    class Ring:
        completed = []

        def complete(self, batch: int, status: int, *rest: Any) -> bool:
            self.completed.append((batch, status))
            return True

    def write(answers: Any, slots: Any, into: Any) -> None:
        raise ValueError("no score")

    completions = os.eventfd(0)
    try:
        scores = Scores(write, slab.score)
        channel = ServerChannel(None, Ring(), -1, completions)
        loop = WorkerLoop(channel, Batches(slab), [ResidentLane(lambda inputs: good(2))], 4, scores)
        loop._slots[:2] = 0, 1
        slab.output(0)[:] = 5.0
        loop._serve(3, 2)
    finally:
        os.close(completions)
    assert Ring.completed == [(3, MODEL_FAILED)]
    assert (slab.output(0) == 5.0).all()


def test_scores_are_tried_out_for_nothing(slab: Slab) -> None:
    """Warming a variant finds a confidence function that does not fit its answers."""
    seen: list[tuple[int, int]] = []

    def write(answers: Any, slots: Any, into: Any) -> None:
        seen.append((len(slots), len(into)))
        into[slots] = 7.0
        if len(slots) > 1:
            raise ValueError("no score")

    scores, before = Scores(write, slab.score), slab.score.tolist()
    scores.try_out(good(1))
    with pytest.raises(ValueError, match="no score"):
        scores.try_out(good(2))
    assert seen == [(1, 1), (2, 2)]
    assert slab.score.tolist() == before


def test_memory_that_ran_out_is_known_by_the_cause_of_an_error() -> None:
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = MemoryError()
    assert status_of(wrapped) == status_of(OSError(errno.ENOMEM, "mmap")) == NO_MEMORY
    assert status_of(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")) == NO_MEMORY
    assert status_of(RuntimeError("shapes do not match")) == MODEL_FAILED


def test_a_batch_is_computed_by_the_variant_of_its_lane(slab: Slab) -> None:
    class Ring:
        statuses: list[int] = []

        def complete(self, batch: int, status: int, *rest: Any) -> bool:
            self.statuses.append(status)
            return True

    def answering(value: float) -> Callable[[Any], list[Any]]:
        return lambda inputs: [good(2)[0] * 0 + value, *good(2)[1:]]

    def fail(inputs: Any) -> list[Any]:
        raise ValueError("a model")

    entered: list[int] = []
    lanes = [
        ResidentLane(answering(1.0), lambda: entered.append(0)),
        None,
        ResidentLane(answering(3.0), lambda: entered.append(2)),
        ResidentLane(fail),
    ]
    completions = os.eventfd(0)
    try:
        loop = WorkerLoop(ServerChannel(None, Ring(), -1, completions), Batches(slab), lanes, 4, None)
        loop._slots[:2] = 0, 1
        seen = []
        for lane in (2, 2, 0, 3, 0):
            loop._serve(1, 2, lane)
            seen.append(float(slab.output(0)[0, 0]))
        for lane in (1, 4, -1):
            with pytest.raises(ValueError, match="not resident"):
                loop._serve(1, 2, lane)
    finally:
        os.close(completions)
    assert seen == [3.0, 3.0, 1.0, 1.0, 1.0]
    assert Ring.statuses == [0, 0, 0, MODEL_FAILED, 0]
    assert entered == [2, 0, 0]


def test_the_number_of_outputs_counts(slab: Slab) -> None:
    with pytest.raises(OutputError, match="2 outputs, 3 are declared"):
        Batches(slab).scatter(slots(0), good(1)[:2])


def test_slots_beyond_the_slab_are_refused(slab: Slab) -> None:
    with pytest.raises(IndexError, match="beyond"):
        Batches(slab).gather(slots(7, 8))


def test_a_row_with_another_number_of_elements_is_refused(slab: Slab) -> None:
    slab.put_bytes("input", 2, 0, pack_row([b"one"]))
    with pytest.raises(ValueError, match="1 elements instead of 2"):
        Batches(slab).gather(slots(0))
