"""Steps in a row, applied to the rows of a batch: a row that one of them cannot take is refused, the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clover.errors import ConfigError
from clover.steps.step import At, BadRow, Column, DataStep
from clover.types import TensorSpec

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or that of a pool of threads."""


class PlacedStep(NamedTuple):
    """A step, where it works, and the tensors that it writes."""

    step: DataStep
    at: At
    writes: tuple[str, ...]


class Applied(NamedTuple):
    """The result of a batch: the tensors of the rows that are `kept` (places in the batch), and why the others were
    `refused`, by place."""

    columns: dict[str, Column]
    kept: list[int]
    refused: dict[int, str]


class TensorFlow:
    """The tensors that there are between steps, and which of them was written last."""

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.last = tensors[0].name if tensors else ""

    def place(self, step: DataStep, folder: Path | None) -> PlacedStep:
        """Let a step work on the tensors; return it with its place.  Raises ConfigError if it cannot."""
        source = step.input or self.last
        at = At(source, step.target(source), folder)
        before = dict(self.tensors)
        step.flow(self.tensors, at)
        self.last = at.target
        written = tuple(name for name, tensor in self.tensors.items() if before.get(name) is not tensor)
        return PlacedStep(step, at, written)

    def add(self, tensors: Sequence[TensorSpec]) -> None:
        """Put the tensors that a model gives beside the others; the first of them is the last written."""
        self.tensors.update({tensor.name: tensor for tensor in tensors})
        self.last = tensors[0].name

    def pick(self, wanted: Sequence[TensorSpec]) -> tuple[tuple[str, ...], tuple[TensorSpec, ...]]:
        """Return the names of the tensors that are to be `wanted`, and these with the axes that are known by now.

        They go by their names; a single one may have another name, and is the one written last then.  Raises
        ConfigError if one is not there or does not fit.
        """
        names, picked = [], []
        for tensor in wanted:
            name = tensor.name
            if name not in self.tensors and len(wanted) == 1:
                name = self.last
            if name not in self.tensors:
                raise ConfigError(f"the steps make no {name!r}, only {', '.join(self.tensors)}")
            names.append(name)
            picked.append(narrowed(self.tensors[name], tensor))
        return tuple(names), tuple(picked)


def narrowed(given: TensorSpec, declared: TensorSpec) -> TensorSpec:
    """Return `declared` with its variable axes as long as `given` has them, if it has.  Raises ConfigError unless
    every `given` is a `declared`."""
    shapes = f"{given.datatype} {list(given.shape)}, declared {declared.datatype} {list(declared.shape)}"
    if given.datatype != declared.datatype or len(given.shape) != len(declared.shape):
        raise ConfigError(f"the steps make {declared.name!r} {shapes}")
    if given.datatype == "BYTES" and given.max_bytes > declared.max_bytes:
        raise ConfigError(f"{declared.name!r} takes up to {given.max_bytes} bytes: its max_bytes must be as many")
    shape = []
    for axis, most, wanted, room in zip(given.shape, given.bound, declared.shape, declared.bound, strict=True):
        if (wanted >= 0 and axis != wanted) or (axis >= 0 and axis > room):
            raise ConfigError(f"the steps make {declared.name!r} {shapes}")
        if axis < 0 and most > room:
            raise ConfigError(f"{declared.name!r} may be up to {most} long on an axis, and {room} is declared")
        shape.append(axis)
    bound = tuple(axis if axis >= 0 else room for axis, room in zip(shape, declared.bound, strict=True))
    varies = min(shape, default=0) < 0
    return TensorSpec(
        name=declared.name,
        datatype=declared.datatype,
        shape=tuple(shape),
        max_shape=bound if varies else (),
        max_bytes=declared.max_bytes,
        labels=declared.labels,
    )


class Pipeline:
    """Steps one after another.  `mapper` computes rows: `map`, or that of a pool of threads."""

    def __init__(self, steps: Sequence[PlacedStep]) -> None:
        self.steps = tuple(_aware(one, then) for one, then in zip_longest(steps, steps[1:]))
        turns = [(by_row, one) for one in self.steps for by_row in _turns(one.step)]
        self._parts = [(by_row, [one for _, one in part]) for by_row, part in groupby(turns, lambda turn: turn[0])]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def apply(self, given: Mapping[str, Column], rows: int, mapper: Mapper = map) -> Applied:
        """Apply the steps to a batch of `rows` rows.  Raises BadRow if a step fails on the batch as a whole."""
        columns = dict(given)
        kept, refused = list(range(rows)), dict[int, str]()
        for by_row, part in self._parts:
            if not kept:
                break
            if by_row:
                columns, kept = self._by_row(part, columns, kept, refused, mapper)
                continue
            for step, at, _ in part:
                step.batch(columns, at)
        return Applied(columns, kept, refused)

    def _by_row(
        self,
        part: Sequence[PlacedStep],
        columns: dict[str, Column],
        kept: list[int],
        refused: dict[int, str],
        mapper: Mapper,
    ) -> tuple[dict[str, Column], list[int]]:
        """Apply steps that compute row by row; return the columns and places of the rows that they took."""

        def run(values: dict[str, Any]) -> str:
            try:
                for step, at, _ in part:
                    step.row(values, at)
            except BadRow as error:
                return str(error)
            return ""

        rows = [{name: column[at] for name, column in columns.items()} for at in range(len(kept))]
        reasons = list(mapper(run, rows))
        good = [at for at, reason in enumerate(reasons) if not reason]
        refused.update({kept[at]: reason for at, reason in enumerate(reasons) if reason})
        if len(good) < len(kept):
            columns = {name: _take_column(column, good) for name, column in columns.items()}
        for name in dict.fromkeys(name for one in part for name in one.writes):
            columns[name] = [rows[at][name] for at in good]
        return columns, [kept[at] for at in good]


def _aware(placed: PlacedStep, then: PlacedStep | None) -> PlacedStep:
    """Return a step that knows of `then`, the one after it, if that replaces what it writes."""
    if then is None or {then.at.source, then.at.target} != {placed.at.target}:
        return placed
    return placed._replace(at=placed.at._replace(then=then.step))


def _turns(step: DataStep) -> tuple[bool, ...]:
    """Return how a step computes, one after the other: row by row (True), the whole batch (False)."""
    return (True, False) if step.by_row and step.then_batch else (step.by_row,)


def _take_column(column: Column, places: list[int]) -> Column:
    return column[places] if isinstance(column, np.ndarray) else [column[at] for at in places]
