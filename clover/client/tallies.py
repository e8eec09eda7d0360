"""A tally of what a program's calls used.

    with clover.client.tally() as used:
        client.infer("fashion", images)
    print(used.joules, used.grams, used.method)

A tally counts every call of the process while it is open, whichever client, thread or asyncio task makes it; with
`own=True` only those of the task or thread that opened it and of what inherits its context (tasks begun in it,
`asyncio.to_thread`).  Tallies nest: a call counts in each that is open.

Figures are sums of receipts, and only answers have receipts.  What refused or repeated tries used is in the server's
account alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from clover.client.receipts import CallReceipt

_lock = threading.Lock()
_everywhere: list[Tally] = []
_own: ContextVar[tuple[Tally, ...]] = ContextVar("clover_tallies", default=())


@dataclass(slots=True)
class ModelUse:
    """What calls of one model used.  `methods` say how joules are known (`measured`, `modelled`, ...),
    `intensity_methods` how the carbon intensity is.  `unknown` calls came without a receipt, and count nothing else."""

    calls: int = 0
    cached: int = 0
    unknown: int = 0
    joules: float = 0.0
    grams: float = 0.0
    methods: set[str] = field(default_factory=set)
    intensity_methods: set[str] = field(default_factory=set)

    @property
    def method(self) -> str:
        """How the joules are known, as "measured+modelled"; "none" before there are any."""
        return "+".join(sorted(self.methods)) or "none"

    def _count(self, receipt: CallReceipt | None) -> None:
        self.calls += 1
        if receipt is None:
            self.unknown += 1
            return
        self.cached += receipt.cached
        self.joules += receipt.energy_j
        self.grams += receipt.carbon_mg * 1e-3
        self.methods.add(receipt.method)
        if receipt.intensity_method:
            self.intensity_methods.add(receipt.intensity_method)


@dataclass(slots=True)
class Tally(ModelUse):
    """What all calls used since the tally was opened (joules, grams of CO2e), and that `by_model`."""

    by_model: dict[str, ModelUse] = field(default_factory=dict)

    def add(self, model: str, receipt: CallReceipt | None) -> None:
        """Count one answered call of a model."""
        self._count(receipt)
        self.by_model.setdefault(model, ModelUse())._count(receipt)

    def __str__(self) -> str:
        more = f", {self.unknown} without a receipt" if self.unknown else ""
        return f"{self.calls} calls{more}: {self.joules:.6g} J ({self.method}), {self.grams:.6g} g CO2e"


@contextlib.contextmanager
def tally(*, own: bool = False) -> Iterator[Tally]:
    """Open a tally; it counts until the block ends, and can be read at any time."""
    opened = Tally()
    token = None
    if own:
        token = _own.set((*_own.get(), opened))
    else:
        with _lock:
            _everywhere.append(opened)
    try:
        yield opened
    finally:
        if token is not None:
            _own.reset(token)
        else:
            with _lock:
                _everywhere[:] = [one for one in _everywhere if one is not opened]


def count(model: str, receipt: CallReceipt | None) -> None:
    """Count an answered call in every tally that is open for it."""
    with _lock:
        for one in (*_everywhere, *_own.get()):
            one.add(model, receipt)
