"""What families did and used since the span was last collected, and what each variant did in all."""

from __future__ import annotations

from dataclasses import dataclass, field

from clover.accounting.devices import Share
from clover.types import Method


@dataclass
class Work:
    """What a variant did: rows, the active joules that its profile expects of them, and those that were metered."""

    rows: int = 0
    expected_j: float = 0.0
    metered_j: float = 0.0


@dataclass
class Span:
    """The work of a family since the last `Account.collect_spans`: rows that each variant computed, joules and grams,
    and the methods of the devices.  Rows whose energy is unknown (the meter began anew) are left out, and so are audits
    and rows that were computed in vain: no client got that answer.  Cascades passed `gone_on` of the rows on to another
    variant (fewer, if others kept an earlier answer).  The answered rows are right by `right` (rows x percent) more
    than the variants are over all rows here.  `share` is what its workers used; `front_end` and `control` are its part
    of what the front end and the control of the server used.  `grids`: how the intensities were known."""

    rows: dict[str, int] = field(default_factory=dict)
    gone_on: int = 0
    right: float = 0.0
    share: Share = field(default_factory=Share)
    front_end: Share = field(default_factory=Share)
    control: Share = field(default_factory=Share)
    methods: set[Method] = field(default_factory=set)
    grids: set[str] = field(default_factory=set)


@dataclass
class Spans:
    """The spans of all families; by device the joules and grams that the server's slices without a worker idled for
    (`unowned`); and the length of the longest window in them."""

    families: dict[str, Span] = field(default_factory=dict)
    unowned: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def for_family(self, family: str) -> Span:
        """Return the span of `family`, made if it is missing."""
        return self.families.setdefault(family, Span())

    def add_unowned(self, device: str, unowned_j: float, grams_per_j: float) -> None:
        """Add what the slices of `device` without a worker idled for in a window."""
        whole_j, whole_g = self.unowned.get(device, (0.0, 0.0))
        self.unowned[device] = whole_j + unowned_j, whole_g + unowned_j * grams_per_j
