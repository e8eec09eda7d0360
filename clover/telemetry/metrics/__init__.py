"""Prometheus metrics: one registry of our own, filled on scrape from counters that are kept anyway.

Nothing on the hot path touches prometheus_client.  Each metric is a line of a table (`table.MetricSpec`): name, help
text, kind, labels and how it is read.  To add one, add a line to the table of what it is read from:

    models.py   traffic and workers of a model; rows that ask for an accuracy
    guard.py    tests, audits, and labels that clients send; new versions that are tried
    tenants.py  what tenants sent, and what that used
    energy.py   joules and grams; what was saved; embodied carbon, grams a row
    server.py   version, carbon readings, decisions, the ledger, the front end, the cluster
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from clover.accounting.account import Account
from clover.accounting.sci import SciReport
from clover.carbon.chain import SourceChain
from clover.control.baselines.saved import Compared
from clover.http.server_state import HttpStats
from clover.runtime.served import Served
from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.metrics import energy, guard, models, server, tenants


class Metrics:
    """Collects on `render`.

    `families` returns the models that are served now, by name.  Optional are `http` (the front end, if there is one),
    `decisions` (counts of controller decisions by action), `compared` (what BASE and fixed mixes would have used),
    `sci` (embodied carbon and grams a row), `turned` (changes of configuration and of thresholds, by model), `ledger`
    (how it is written, None if none is kept), `spans` (counts of OpenTelemetry spans by outcome), `parked`
    (whether GPUs that may be parked are, by name), and `further`, the metrics of parts that a server may do without,
    which come last.
    """

    def __init__(
        self,
        *,
        families: Callable[[], Mapping[str, Served]],
        account: Account,
        chain: SourceChain,
        http: Callable[[], HttpStats | None] = lambda: None,
        decisions: Callable[[], Mapping[str, int]] = dict,
        compared: Callable[[], Iterable[Compared]] = tuple,
        sci: Callable[[], SciReport] | None = None,
        turned: Callable[[], Mapping[str, tuple[int, int]]] = dict,
        ledger: Callable[[], LedgerStatus | None] = lambda: None,
        spans: Callable[[], Mapping[str, int]] = dict,
        parked: Callable[[], Mapping[str, bool]] = dict,
        further: Sequence[Callable[[], Iterable[Metric]]] = (),
    ) -> None:
        self._families = families
        self._account = account
        self._chain = chain
        self._http = http
        self._decisions = decisions
        self._compared = compared
        self._sci = sci
        self._turned = turned
        self._ledger = ledger
        self._spans = spans
        self._parked = parked
        self._further = further
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def render(self) -> bytes:
        """Return the Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        """Return no names: prometheus_client compares them between collectors, and this registry has one."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, read now."""
        families = self._families()
        yield from server.build({name: family.left_out.lines for name, family in families.items()})
        yield from models.models(families)
        yield from guard.guard({name: family.router.guard_report() for name, family in families.items()})
        yield from models.demand(families)
        yield from tenants.tenants(families, self._account)
        yield from energy.energy(self._account)
        yield from energy.savings(self._compared())
        if self._sci is not None:
            yield from energy.sci(self._sci())
        yield from server.carbon(self._chain)
        yield from server.control(self._decisions(), self._turned())
        yield from server.parked(self._parked())
        yield from server.ledger(self._ledger())
        yield from server.otel(self._spans())
        http = self._http()
        if http is not None:
            yield from server.http(http)
        for more in self._further:
            yield from more()
