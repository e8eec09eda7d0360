"""A metric as a line of a table: its name, its help text, its kind, its labels, and how it is read.

A table is read from sources of one type: a model, a device, the front end.  A line's `read` yields (labels, value) for
each sample of one source.  A source may come with leading labels that all lines of its table share, such as the name
of the model; `read` then yields the remaining ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

COUNTER = CounterMetricFamily
GAUGE = GaugeMetricFamily
HISTOGRAM = HistogramMetricFamily
INFO = InfoMetricFamily
Kind = type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily] | type[InfoMetricFamily]

Sample = tuple[tuple[str, ...], Any]
"""Labels and a value: a number; of a histogram (cumulative buckets, sum); of an info a dict of strings."""

S = TypeVar("S")


@dataclass(frozen=True)
class MetricSpec(Generic[S]):
    """One metric, read from sources of type S.  prometheus_client appends `_total` to the names of counters."""

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...]
    read: Callable[[S], Iterable[Sample]]


def collect(table: Sequence[MetricSpec[S]], sources: Iterable[tuple[tuple[str, ...], S]]) -> Iterator[Metric]:
    """Yield every metric of `table`, read now from `sources` (leading labels, source).

    A metric without samples is yielded, too: its help and type are exposed from the start.
    """
    found = list(sources)
    for line in table:
        metric = line.kind(line.name, line.help, labels=line.labels)
        for leading, source in found:
            for labels, value in line.read(source):
                values = value if isinstance(metric, HistogramMetricFamily) else (value,)
                metric.add_metric((*leading, *labels), *values)
        yield metric


def single(value: Any) -> list[Sample]:
    """Return the one sample of a metric without labels of its own."""
    return [((), value)]


def by_label(values: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield one sample for each key of `values`, which is the last label."""
    return (((label,), value) for label, value in values.items())


def summed(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield one sample for each set of labels."""
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in samples:
        sums[labels] = sums.get(labels, 0.0) + value
    yield from sums.items()
