"""Labels that clients send later: answers are remembered for a while by the number of their request, and compared.

Numbers are the server's own, and no two requests have the same one; the front end takes them only from ids that it
made, so that no client labels the requests of others.  Of every answered row only the answer is kept (a class, a
number, a text), at most `rows` of them; the oldest requests are dropped first.  Feedback counts once: a request that
got its labels is forgotten.  The served accuracy found like this is as good as the choice of rows that get labels, and
as honest as the clients: how many labels one client may give is bounded (`Labellers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from clover.errors import BadRequest, NotFound, Overloaded, RequestError
from clover.runtime.guard.answer_reader import RowAnswer, answer_bytes, same_answer
from clover.runtime.guard.drift import wilson
from clover.types import FamilySpec

_PART = 64
_MOST = 4096
"""A full memory drops one part in `_PART` at a time, and no more than `_MOST` requests, as clients wait meanwhile."""
_LONGEST_ANSWER = 256
"""Bytes: longer answers are not remembered, as labels for them are unlikely and they would fill the memory."""
_MINUTE_NS = 60_000_000_000
_TRIES = 600
"""Ids that are not remembered, a client and minute."""
_MOST_CLIENTS = 4096
"""Clients that are counted one by one; those that come later count as one."""
_OTHERS = "others"

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
        self.expected = [0.0] * len(spec.variants)
        """Of the rows whose label came, how many were expected to be right."""
        self.remembered = 0
        self.refused = {"unknown": 0, "unfit": 0, "limited": 0}
        """Feedback that was not counted: for an id that is not remembered, with labels that do not fit, from a client
        that gave too many."""
        self._labellers = Labellers(rows)
        names = spec.outputs[0].labels
        self._classes = {name: at for at, name in reversed([*enumerate(names)])}  # of equal names the first
        self._rows = rows
        self._lanes = len(spec.variants)
        self._known: dict[int, int | tuple[list[int], list[RowAnswer | None]]] = {}
        """By number, oldest first: the lanes and their answers; for a single row whose answer is a class, both packed
        into one integer, because this is written for every request and small entries stay in the CPU's caches."""

    @property
    def on(self) -> bool:
        """Whether anything is remembered."""
        return self._rows > 0

    def knows(self, number: int) -> bool:
        """Return whether the answer to a request is remembered."""
        return number in self._known

    def forget(self) -> None:
        """Drop all answers that were given so far: they are not of the version that answers now."""
        self._known.clear()
        self.remembered = 0

    def remember_row(self, number: int, lane: int, answer: RowAnswer | None) -> None:
        """Keep the answer of a request of one row, as `remember` does."""
        if isinstance(answer, int):
            self._enter(number, answer * self._lanes + lane, 1)
        else:
            self.remember(number, [lane], [answer])

    def remember(self, number: int, lanes: list[int], answers: list[RowAnswer | None]) -> None:
        """Keep the answers to the rows of a request, and the lane that gave each.  The lists are not copied."""
        for answer in answers:
            if not isinstance(answer, int) and answer is not None and answer_bytes(answer) > _LONGEST_ANSWER:
                return
        self._enter(number, (lanes, answers), len(lanes))

    def _enter(self, number: int, answered: Any, rows: int) -> None:
        if rows > self._rows:
            return
        self._known[number] = answered
        self.remembered += rows
        if self.remembered > self._rows:
            self._forget(self._rows - min(self._rows // _PART, _MOST))

    def _forget(self, most: int) -> None:
        """Drop the oldest requests until at most `most` rows are left.  Many are dropped at a time, because finding the
        first entry of a dictionary passes over all that were deleted before it."""
        known = self._known
        while self.remembered > most:
            for oldest in list(islice(known, self.remembered - most)):
                if self.remembered <= most:
                    break
                self.remembered -= _rows_of(known.pop(oldest))

    def take(
        self, number: int, labels: Sequence[Any], client: str, now_ns: int, accuracy: Sequence[float] = ()
    ) -> dict[str, Any]:
        """Count the labels of `client` for a request, one a row in their order, None for a row whose label is not
        known; return how many rows had labels, how many were right, and the estimate.  A label is what the answer
        should have been: the index of the class or its name, a number, or a text.  `accuracy`: the percent that are
        expected of each lane's answers now, which are taken for those of when it answered.

        Raises NotFound for a number that is not remembered, BadRequest if the labels do not fit, and Overloaded if the
        client gave too many; nothing is counted then, and the request stays remembered."""
        try:
            found = self._judge(number, labels, client, now_ns, accuracy)
        except RequestError as error:
            self.refused[_REASONS[error.status]] += 1
            raise
        given = [good for good in found if good is not None]
        return {"rows": len(given), "right": sum(given), "estimate": self.estimate()}

    def _judge(
        self, number: int, labels: Sequence[Any], client: str, now_ns: int, accuracy: Sequence[float]
    ) -> list[bool | None]:
        """Count the labels; return which rows were right (None: not known)."""
        known = self._known.get(number)
        if known is None:
            self._labellers.count_unknown_id(client, now_ns)
            raise NotFound(_UNKNOWN)
        lanes, answers = ([known % self._lanes], [known // self._lanes]) if isinstance(known, int) else known
        if len(labels) != len(lanes):
            raise BadRequest(f"that request had {len(lanes)} rows, and {len(labels)} labels were given")
        right = [
            None if label is None or answer is None else self.is_right(answer, label)
            for answer, label in zip(answers, labels, strict=True)
        ]
        self._labellers.count_labels(client, len(lanes), now_ns)
        del self._known[number]
        self.remembered -= len(lanes)
        for lane, good in zip(lanes, right, strict=True):
            if good is not None:
                self.labelled[lane] += 1
                self.right[lane] += good
                self.expected[lane] += accuracy[lane] / 100.0 if accuracy else 0.0
        return right

    def is_right(self, answer: RowAnswer, label: Any) -> bool:
        """Return whether an answer is what its label says; raises BadRequest for a label that cannot be compared."""
        text = not isinstance(answer, int) and answer.dtype == object
        if isinstance(label, str):
            if not isinstance(answer, int) and text:
                return answer.shape == (1,) and bytes(answer[0])[4:] == label.encode()
            label = self._classes.get(label)
            if label is None:
                raise BadRequest("a label is not one of the output's labels")
        if isinstance(label, bool) or not isinstance(label, int | float) or text:
            raise BadRequest("a label is the index or the name of a class, a number, or null")
        if isinstance(answer, int):
            return answer == label
        if answer.dtype.kind == "f":
            try:
                return same_answer(answer.astype(np.float64), np.full(answer.shape, label, np.float64))
            except OverflowError:
                return False  # no float is that large
        return bool((answer.astype(object) == label).all())

    def estimate(self) -> dict[str, Any] | None:
        """Return the served accuracy (percent) by labels, with its 95 % interval; None before the first label."""
        return _estimate(sum(self.right), sum(self.labelled))

    def report(self, variants: Sequence[str]) -> dict[str, Any]:
        """Return the estimate over all rows and by the variant that answered, and what is remembered and refused."""
        of = zip(variants, self.right, self.labelled, self.expected, strict=True)
        found = {
            name: {**(_estimate(right, rows) or {}), "expected": 100.0 * expected / rows}
            for name, right, rows, expected in of
            if rows
        }
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


class Labellers:
    """Counts by client: this minute's rows and tries, and all rows that were labelled.

    A client is an address.  One that labels its own requests wrongly cannot be distinguished from one whose labels are
    right, so the labels that it may give a minute are bounded, and its share of all labels is reported.  Ids that are
    not remembered are counted separately, so that guessing ids does not use up the limit of others behind the same
    proxy.
    """

    __slots__ = ("_labelled", "_minute", "_rows", "_rows_a_minute", "_tries")

    def __init__(self, rows_a_minute: int) -> None:
        self._rows_a_minute = rows_a_minute
        self._minute = -1
        self._rows: dict[str, int] = {}
        self._tries: dict[str, int] = {}
        self._labelled: dict[str, int] = {}

    def count_unknown_id(self, client: str, now_ns: int) -> None:
        """Count an id that is not remembered; raises Overloaded if the client tried too many this minute."""
        self._begin_minute(now_ns)
        found = self._tries.get(_place(self._tries, client), 0)
        if found >= _TRIES:
            raise self._wait(now_ns, "too many unknown ids from this address; come again later")
        self._tries[_place(self._tries, client)] = found + 1

    def count_labels(self, client: str, rows: int, now_ns: int) -> None:
        """Count labelled rows; raises Overloaded, and counts nothing, if that would be too many this minute."""
        self._begin_minute(now_ns)
        place = _place(self._rows, client)
        found = self._rows.get(place, 0) + rows
        if found > self._rows_a_minute:
            raise self._wait(now_ns, "too many labels from this address; come again later with the same ones")
        self._rows[place] = found
        place = _place(self._labelled, client)
        self._labelled[place] = self._labelled.get(place, 0) + rows

    @property
    def clients(self) -> int:
        """Clients that gave labels."""
        return len(self._labelled)

    @property
    def largest_share(self) -> float | None:
        """The share of all labelled rows that came from the client with most; None before the first.  Clients that
        are not counted one by one are left out."""
        total = sum(self._labelled.values())
        most = max((rows for client, rows in self._labelled.items() if client != _OTHERS), default=0)
        return most / total if total else None

    def _begin_minute(self, now_ns: int) -> None:
        """Reset the counts if another minute has begun."""
        minute = now_ns // _MINUTE_NS
        if minute != self._minute:
            self._minute = minute
            self._rows.clear()
            self._tries.clear()

    @staticmethod
    def _wait(now_ns: int, text: str) -> Overloaded:
        return Overloaded(text, retry_after_s=(_MINUTE_NS - now_ns % _MINUTE_NS) / 1e9)


def _place(counts: dict[str, int], client: str) -> str:
    """Return the key of a client in a bounded dictionary: its own, or that of all others."""
    return client if client in counts or len(counts) < _MOST_CLIENTS else _OTHERS
