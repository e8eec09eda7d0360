"""Labels that come late: what was answered is remembered for a while by the id of its request, and counted.

Of every answered row only what it says is kept (a class, a number, a text), at most `rows` of them; the oldest requests
go first.  An id that is used again means its last request.  Feedback counts once: a request that was told about is
forgotten.  The served accuracy that follows is as good as the choice of rows that get labels: of those that a user
complained about it says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from clover.errors import BadRequest, NotFound
from clover.planning.drift import wilson
from clover.runtime.sayings import Said, same, size_of
from clover.types import FamilySpec

_LONGEST_ID = 256
_PART = 64
_MOST = 4096
"""Of a full memory the oldest part is let go at a time, and no more requests than that: clients wait meanwhile."""
_LONGEST_SAID = 256
"""Bytes of what is said of a row: longer answers nobody labels, and clients could fill the memory with them."""


class Feedback:
    """Remembers up to `rows` answered rows of a family; 0 remembers none."""

    def __init__(self, spec: FamilySpec, rows: int) -> None:
        self.right = [0] * len(spec.variants)
        self.labelled = [0] * len(spec.variants)
        """By variant that answered: rows whose label came, and those of them that were right."""
        self.remembered = 0
        self._output = spec.outputs[0]
        self._rows = rows
        self._lanes = len(spec.variants)
        self._known: dict[str, int | tuple[list[int], list[Said | None]]] = {}
        """By id, oldest first: lanes and what they said; of one row that says a class both in one number, since this
        is written for every request, and what is long in memory is far from the processor when it is let go."""

    @property
    def on(self) -> bool:
        """Whether anything is remembered."""
        return self._rows > 0

    def remember_row(self, request_id: str, lane: int, said: Said | None) -> None:
        """As `remember`, of a request of one row."""
        if isinstance(said, int):
            self._enter(request_id, said * self._lanes + lane, 1)
        else:
            self.remember(request_id, [lane], [said])

    def remember(self, request_id: str, lanes: list[int], said: list[Said | None]) -> None:
        """What was said of the rows that were answered under an id, and the lane that answered each.  The lists are
        kept."""
        for one in said:
            if not isinstance(one, int) and one is not None and size_of(one) > _LONGEST_SAID:
                self._enter(request_id, None, 0)
                return
        self._enter(request_id, (lanes, said), len(lanes))

    def _enter(self, request_id: str, answered: Any, rows: int) -> None:
        """Remember `answered` under an id, or (None) nothing any more."""
        if not request_id or len(request_id) > _LONGEST_ID:
            return
        known = self._known
        before = known.pop(request_id, None)
        if before is not None:
            self.remembered -= _rows_of(before)
        if answered is None or rows > self._rows:
            return
        known[request_id] = answered
        self.remembered += rows
        if self.remembered > self._rows:
            self._forget(self._rows - min(self._rows // _PART, _MOST))

    def _forget(self, most: int) -> None:
        """Let the oldest go until `most` rows are left: many at a time, as a dictionary passes over what was deleted at
        its front whenever its first entry is asked for."""
        known = self._known
        while self.remembered > most:
            for oldest in list(islice(known, self.remembered - most)):
                if self.remembered <= most:
                    break
                self.remembered -= _rows_of(known.pop(oldest))

    def take(self, request_id: str, labels: Sequence[Any]) -> dict[str, Any]:
        """Count the labels of a request, one a row in their order, None for a row whose label is not known; what it
        came to.  A label is what the answer should have been: the index of the class or its name, a number, or a text.

        Raises NotFound for an id that is not remembered, and BadRequest where the labels do not fit; nothing is counted
        then."""
        known = self._known.get(request_id)
        if known is None:
            raise NotFound("no answer of that id is remembered: it was never given, is too long ago, or was told about")
        lanes, said = ([known % self._lanes], [known // self._lanes]) if isinstance(known, int) else known
        if len(labels) != len(lanes):
            raise BadRequest(f"that request had {len(lanes)} rows, and {len(labels)} labels were given")
        right = [
            None if label is None or one is None else self._right(one, label)
            for one, label in zip(said, labels, strict=True)
        ]
        del self._known[request_id]
        self.remembered -= len(lanes)
        for lane, good in zip(lanes, right, strict=True):
            if good is not None:
                self.labelled[lane] += 1
                self.right[lane] += good
        given = [good for good in right if good is not None]
        return {"id": request_id, "rows": len(given), "right": sum(given), "estimate": self.estimate()}

    def _right(self, said: Said, label: Any) -> bool:
        text = not isinstance(said, int) and said.dtype == object
        if isinstance(label, str):
            if not isinstance(said, int) and text:
                return said.shape == (1,) and bytes(said[0])[4:] == label.encode()
            if label not in self._output.labels:
                raise BadRequest("a label is none of the output's")
            label = self._output.labels.index(label)
        if isinstance(label, bool) or not isinstance(label, int | float) or text:
            raise BadRequest("a label is the index or the name of a class, a number, or null")
        if isinstance(said, int):
            return said == label
        if said.dtype.kind == "f":
            return same(said.astype(np.float64), np.full(said.shape, label, np.float64))
        return bool((said.astype(object) == label).all())

    def estimate(self) -> dict[str, Any] | None:
        """The served accuracy by labels, percent, with its 95 % interval; None before the first label."""
        return _estimate(sum(self.right), sum(self.labelled))

    def report(self, variants: Sequence[str]) -> dict[str, Any]:
        """The estimate, over all and by variant that answered."""
        of = zip(variants, self.right, self.labelled, strict=True)
        found = {name: _estimate(right, rows) for name, right, rows in of if rows}
        return {"estimate": self.estimate(), "variants": found, "remembered": self.remembered, "room": self._rows}


def _rows_of(answered: Any) -> int:
    return 1 if isinstance(answered, int) else len(answered[0])


def _estimate(right: int, rows: int) -> dict[str, Any] | None:
    if not rows:
        return None
    low, high = wilson(right, rows)
    return {"accuracy": 100.0 * right / rows, "low": low, "high": high, "rows": rows, "source": "feedback"}
