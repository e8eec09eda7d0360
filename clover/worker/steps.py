"""Steps in a worker: rows of clients become inputs of the model, and its outputs become answers to clients.

A row that a step cannot take is refused: the reason is written beside it in the slab, and the other rows of the batch
are answered.  If the rows come out of the steps in several shapes, the model is run once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import steps
from clover.runtime.memory.slab import ROWS_REFUSED, Slab
from clover.types import FamilySpec, VariantSpec
from clover.worker.batches import Batches, check_answers

Run = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
Score = Callable[[NDArray[np.uint32], Sequence[Any]], None]


class LaneSteps:
    """The worker's steps of one variant.  `score`, if there is one, writes the scores of a model's answers."""

    def __init__(
        self, spec: FamilySpec, variant: VariantSpec, slab: Slab, batches: Batches, score: Score | None, threads: int
    ) -> None:
        plan = steps.plan_for(spec, variant)
        assert plan is not None
        self._spec = spec
        self._plan = plan
        self._slab = slab
        self._batches = batches
        self._score = score
        self._mapper = steps.thread_mapper(threads)

    def serve(self, slots: NDArray[np.uint32], run: Run) -> int:
        """Answer the rows in `slots` with the model `run`; return the status of the batch: 0, or ROWS_REFUSED.

        Raises what the model raises; no answer is written then."""
        plan = self._plan
        given = dict(zip([one.name for one in plan.inputs], self._batches.gather(slots), strict=True))
        before = plan.worker_before.apply(given, len(slots), self._mapper)
        refused = before.refused
        parts = [self._part(before, part, run) for part in _alike(before.columns, plan.taken, len(before.kept))]
        for part, answers, after in parts:
            places = [before.kept[part[at]] for at in after.kept]
            refused.update({before.kept[part[at]]: reason for at, reason in after.refused.items()})
            if not places:
                continue
            mine = slots[places]
            outputs = [steps.stack_rows(after.columns[name]) for name in plan.given]
            kept = answers if len(places) == len(part) else [array[after.kept] for array in answers]
            first = None if self._score is None else partial(self._score, mine, kept)
            self._batches.scatter(mine, outputs, first)
        if not refused:
            return 0
        self._slab.refuse(slots.tolist(), refused)
        return ROWS_REFUSED

    def _part(
        self, before: steps.Applied, part: list[int], run: Run
    ) -> tuple[list[int], list[NDArray[Any]], steps.Applied]:
        """Run the model on the rows at the places `part` of those kept, and the steps after it; return these places,
        the model's answers, and what came of them."""
        plan, whole = self._plan, len(part) == len(before.kept)
        columns = before.columns if whole else {name: [col[at] for at in part] for name, col in before.columns.items()}
        answers = run([np.ascontiguousarray(steps.stack_rows(columns[name])) for name in plan.taken])
        check_answers(plan.model_outputs, len(part), answers)
        if not whole:
            answers = [np.array(array) for array in answers]  # the next run may overwrite them
        named = zip([one.name for one in plan.model_outputs], map(np.asarray, answers), strict=True)
        return part, answers, plan.worker_after.apply({**columns, **dict(named)}, len(part), self._mapper)

    def try_out(self, run: Run) -> None:
        """Take a made-up row through the steps and the model.  Raises what they raise."""
        plan, generator = self._plan, np.random.default_rng(0)
        rows = steps.as_sent(self._spec, steps.made_up(self._spec, 1, generator))
        given = dict(zip([one.name for one in plan.inputs], rows, strict=True))
        before = plan.worker_before.apply(given, 1)
        if before.refused:
            raise steps.BadRow(f"a made-up row is refused: {before.refused[0]}")
        _, _, after = self._part(before, [0], run)
        self._batches.check(1, [steps.stack_rows(after.columns[name]) for name in plan.given])


def _alike(columns: dict[str, steps.Column], names: Sequence[str], rows: int) -> list[list[int]]:
    """Return the places of rows whose tensors `names` have the same shapes, by shape."""
    ragged = [columns[name] for name in names if rows and not isinstance(columns[name], np.ndarray)]
    if not ragged:
        return [list(range(rows))] if rows else []
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for at in range(rows):
        groups.setdefault(tuple(np.shape(column[at]) for column in ragged), []).append(at)
    return list(groups.values())
