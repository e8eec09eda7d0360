"""What an operator is shown when clients' inputs are not as profiled.

drift    the inputs of all clients, or of the one that sends nearly all rows: the guard's alarm level is raised
client   the inputs of one client, or of a few: their escalations are limited, and they raise no alarm
repeats  the same, and at least half of their rows are inputs that came before: a probe, or a loop
probe    none of these, but most rows of all clients are inputs that came before: a probe, a health check, a benchmark

A client's address stands in the log and not in the state, which other clients may read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clover.runtime.guard.clients import ClientGroups, Sender
from clover.runtime.guard.drift import Detector
from clover.runtime.guard.escalation_limit import EscalationLimit

log = logging.getLogger("clover.guard")

FEWEST = 32
"""Recent rows that a client has to have to be part of a pattern."""
MOST = 0.75
"""The part of the latest rows that repeats inputs, from which on that is worth saying."""
FEW = 100
"""Different inputs up to which their number is said.  Of as many no test raises an alarm."""
NONE, DRIFT_OF_ALL, CLIENT, REPEATS, PROBE = PATTERNS = ("none", "drift", "client", "repeats", "probe")


@dataclass(frozen=True, slots=True)
class Pattern:
    """What it looks like (`kind`, one of `PATTERNS`), the same in words, the clients' part of the latest rows, and who
    they are."""

    kind: str = NONE
    text: str = ""
    share: float = 0.0
    senders: tuple[Sender, ...] = ()


def pattern_of(clients: ClientGroups, limit: EscalationLimit, alarm: str, detectors: Iterable[Detector]) -> Pattern:
    """Return what the latest rows look like; `alarm` says why the alarm level is raised, empty if it is not."""
    found = [sender for sender in clients.senders() if sender.recent_rows >= FEWEST and limit.is_over(sender)]
    if found and not (alarm and sum(map(clients.share, found)) >= 0.5):
        return _of_clients(clients, limit, found)
    if alarm:
        who = "the one client that sends nearly all rows" if clients.leader is not None else "all clients"
        return Pattern(DRIFT_OF_ALL, f"looks like drift in the inputs of {who}: {alarm}")
    group = next((detector.blamed for detector in detectors if detector.blamed >= 0), -1)
    if group >= 0:
        several = tuple(sender for sender in clients.senders() if sender.group == group and sender.recent_rows)
        # The rows of an address that sends nearly all are those of its connections.
        several = tuple(sender for sender in several if sender.name != clients.leader) or several
        share = clients.recent[group] / sum(clients.recent)
        who = "one client" if len(several) == 1 else f"one or some of {len(several)} clients"
        text = f"{who} ({share:.0%} of the rows) send unusual inputs, the others do not: nothing is changed"
        return Pattern(CLIENT, text, share, several)
    return _of_repeats(clients)


def _of_repeats(clients: ClientGroups) -> Pattern:
    """Return PROBE if most of the latest rows, whoever sent them, are inputs that came before; else NONE."""
    rows = sum(clients.recent)
    # The rows of `newcomers` are counted by their connections too.
    senders = [sender for sender in clients.senders() if sender is not clients.newcomers]
    repeats, inputs = sum(sender.repeats for sender in senders), sum(sender.inputs for sender in senders)
    if rows < FEWEST or repeats < MOST * rows:
        return Pattern()
    what = _same(inputs) if inputs <= FEW else "inputs that came before"
    how = "looks like a probe, a health check or a benchmark, whose accuracy says little of other inputs"
    return Pattern(PROBE, f"{repeats / rows:.0%} of the latest rows are {what}: {how}", repeats / rows)


def _same(inputs: int) -> str:
    """Return how rows of so many inputs that were new are alike; none of them is new if others sent them before."""
    return f"the same {f'{inputs} inputs' if inputs > 1 else 'input'} again and again"


def _of_clients(clients: ClientGroups, limit: EscalationLimit, found: list[Sender]) -> Pattern:
    """Return the pattern of clients that are over their limits of escalations."""
    rows = sum(one.recent_rows for one in found)
    repeats = sum(one.repeats for one in found)
    usual = max(limit.planned, limit.usual)
    times = sum(one.escalations for one in found) / rows / usual
    share = sum(map(clients.share, found))
    who = "one client" if len(found) == 1 else f"{len(found)} clients"
    done = "that is limited, and others are not affected" if limit.acts else "the guard only watches: nothing is done"
    how = f"which the cascade wants to escalate {times:.1f} times as often as usual; {done}"
    if 2 * repeats >= rows:
        inputs = sum(one.inputs for one in found)
        text = f"{who} ({share:.0%} of the rows) sent {_same(inputs)}, {how}"
        return Pattern(REPEATS, text, share, tuple(found))
    return Pattern(CLIENT, f"{who} ({share:.0%} of the rows) sent unusual inputs, {how}", share, tuple(found))


class PatternWatch:
    """Looks for a pattern about once a second, and logs each that is new.  `latest`: what was found last."""

    def __init__(self, name: str) -> None:
        self.latest = Pattern()
        self._name = name
        self._told_probe = False

    def evaluate(
        self, clients: ClientGroups, limit: EscalationLimit, alarm: str, detectors: Iterable[Detector]
    ) -> None:
        """Find the pattern of now (see `pattern_of`)."""
        before, self.latest = self.latest, pattern_of(clients, limit, alarm, detectors)
        now = self.latest
        names = {sender.name for sender in now.senders}
        if now.senders and not (before.kind == now.kind and names <= {sender.name for sender in before.senders}):
            log.warning("%s: %s (%s)", self._name, now.text, ", ".join(sorted(names)[:8]))
        elif now.kind == PROBE and not self._told_probe:  # once: it is no trouble, and may come and go
            self._told_probe = True
            log.info("%s: %s", self._name, now.text)
        elif before.kind not in (NONE, PROBE) and now.kind in (NONE, PROBE):
            log.info("%s: clients' inputs are as usual again", self._name)

    def report(self, limit: EscalationLimit) -> dict[str, Any]:
        """Return the pattern, and the limit of escalations with what it refused."""
        return {
            "kind": self.latest.kind,
            "text": self.latest.text,
            "share": self.latest.share,
            "clients": len(self.latest.senders),
            "escalation_limit": limit.multiple,
            "planned_escalations": limit.planned,
            "usual_escalations": max(limit.planned, limit.usual),
            "limited_rows": limit.refused,
        }
