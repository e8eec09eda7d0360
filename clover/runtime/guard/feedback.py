"""Labels that come late: what was answered is remembered for a while by the number of its request, and counted.

Numbers are the server's own, and no two requests have the same one; the front end takes them only from ids that it
made, so that nobody labels what others asked.  Of every answered row only what it says is kept (a class, a number, a
text), at most `rows` of them; the oldest requests go first.  Feedback counts once: a request that got its labels is
forgotten.  The served accuracy that follows is as good as the choice of rows that get labels, and as honest as who
gives them: what one client may say is bounded (`clover.runtime.guard.labellers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from clover.errors import BadRequest, NotFound, Overloaded, RequestError
from clover.runtime.guard.answer_reader import Said, same, size_of
from clover.runtime.guard.drift import wilson
from clover.runtime.guard.labellers import Labellers
from clover.types import FamilySpec

_PART = 64
_MOST = 4096
"""Of a full memory the oldest part is let go at a time, and no more requests than that: clients wait meanwhile."""
_LONGEST_SAID = 256
"""Bytes of what is said of a row: longer answers nobody labels, and clients could fill the memory with them."""

_UNKNOWN = (
    "no answer of that id is remembered: it was never given, is too long ago, or got its labels; id is the "
    "x-request-id that the server made or, if the request brought one, what the receipt calls feedback"
)
_REASONS = {NotFound.status: "unknown", BadRequest.status: "unfit", Overloaded.status: "limited"}


class Feedback:
    """Remembers up to `rows` answered rows of a family; 0 remembers none."""

    def __init__(self, spec: FamilySpec, rows: int) -> None:
        self.right = [0] * len(spec.variants)
        self.labelled = [0] * len(spec.variants)
        """By variant that answered: rows whose label came, and those of them that were right."""
        self.remembered = 0
        self.refused = {"unknown": 0, "unfit": 0, "limited": 0}
        """Feedback that was not counted: of an id that is not remembered, with labels that do not fit, of a client that
        says too much."""
        self._labellers = Labellers(rows)
        names = spec.outputs[0].labels
        self._classes = {name: at for at, name in reversed([*enumerate(names)])}  # of equal names the first
        self._rows = rows
        self._lanes = len(spec.variants)
        self._known: dict[int, int | tuple[list[int], list[Said | None]]] = {}
        """By number, oldest first: lanes and what they said; of one row that says a class both in one number, as this
        is written for every request, and what is long in memory is far from the processor when it is let go."""

    @property
    def on(self) -> bool:
        """Whether anything is remembered."""
        return self._rows > 0

    def remember_row(self, number: int, lane: int, said: Said | None) -> None:
        """As `remember`, of a request of one row."""
        if isinstance(said, int):
            self._enter(number, said * self._lanes + lane, 1)
        else:
            self.remember(number, [lane], [said])

    def remember(self, number: int, lanes: list[int], said: list[Said | None]) -> None:
        """What was said of the rows of a request, which is answered once, and the lane that answered each.  The lists
        are kept."""
        for one in said:
            if not isinstance(one, int) and one is not None and size_of(one) > _LONGEST_SAID:
                return
        self._enter(number, (lanes, said), len(lanes))

    def _enter(self, number: int, answered: Any, rows: int) -> None:
        if rows > self._rows:
            return
        self._known[number] = answered
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

    def take(self, number: int, labels: Sequence[Any], client: str, now_ns: int) -> dict[str, Any]:
        """Count the labels that `client` has for a request, one a row in their order, None for a row whose label is not
        known; what it came to.  A label is what the answer should have been: the index of the class or its name, a
        number, or a text.

        Raises NotFound for a number that is not remembered, BadRequest where the labels do not fit, and Overloaded
        where the client says too much; nothing is counted then, and the request is remembered on."""
        try:
            found = self._judged(number, labels, client, now_ns)
        except RequestError as error:
            self.refused[_REASONS[error.status]] += 1
            raise
        given = [good for good in found if good is not None]
        return {"rows": len(given), "right": sum(given), "estimate": self.estimate()}

    def _judged(self, number: int, labels: Sequence[Any], client: str, now_ns: int) -> list[bool | None]:
        """Return which rows were right (None: not known), once they are counted."""
        known = self._known.get(number)
        if known is None:
            self._labellers.tried(client, now_ns)
            raise NotFound(_UNKNOWN)
        lanes, said = ([known % self._lanes], [known // self._lanes]) if isinstance(known, int) else known
        if len(labels) != len(lanes):
            raise BadRequest(f"that request had {len(lanes)} rows, and {len(labels)} labels were given")
        right = [
            None if label is None or one is None else self._right(one, label)
            for one, label in zip(said, labels, strict=True)
        ]
        self._labellers.labels(client, len(lanes), now_ns)
        del self._known[number]
        self.remembered -= len(lanes)
        for lane, good in zip(lanes, right, strict=True):
            if good is not None:
                self.labelled[lane] += 1
                self.right[lane] += good
        return right

    def _right(self, said: Said, label: Any) -> bool:
        text = not isinstance(said, int) and said.dtype == object
        if isinstance(label, str):
            if not isinstance(said, int) and text:
                return said.shape == (1,) and bytes(said[0])[4:] == label.encode()
            label = self._classes.get(label)
            if label is None:
                raise BadRequest("a label is none of the output's")
        if isinstance(label, bool) or not isinstance(label, int | float) or text:
            raise BadRequest("a label is the index or the name of a class, a number, or null")
        if isinstance(said, int):
            return said == label
        if said.dtype.kind == "f":
            try:
                return same(said.astype(np.float64), np.full(said.shape, label, np.float64))
            except OverflowError:
                return False  # no float is that large
        return bool((said.astype(object) == label).all())

    def estimate(self) -> dict[str, Any] | None:
        """Return the served accuracy by labels, percent, with its 95 % interval; None before the first label."""
        return _estimate(sum(self.right), sum(self.labelled))

    def report(self, variants: Sequence[str]) -> dict[str, Any]:
        """Return the estimate, over all and by variant that answered."""
        of = zip(variants, self.right, self.labelled, strict=True)
        found = {name: _estimate(right, rows) for name, right, rows in of if rows}
        return {
            "estimate": self.estimate(),
            "variants": found,
            "remembered": self.remembered,
            "room": self._rows,
            "clients": self._labellers.clients,
            "largest_share": self._labellers.largest_share,
            "refused": dict(self.refused),
        }


def _rows_of(answered: Any) -> int:
    return 1 if isinstance(answered, int) else len(answered[0])


def _estimate(right: int, rows: int) -> dict[str, Any] | None:
    if not rows:
        return None
    low, high = wilson(right, rows)
    return {"accuracy": 100.0 * right / rows, "low": low, "high": high, "rows": rows, "source": "feedback"}
