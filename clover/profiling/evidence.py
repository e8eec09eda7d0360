"""What a measurement keeps of every variant's answers so that cascades can be judged: scores, and what was right.

The pass over held-out rows that measures accuracy is the one that is kept, of each backend until one is chosen; the
chosen one then sees the calibration rows, too.  Kept is the one output that the score reads, because its temperature is
only known afterwards, or the scores alone where a function of the family gives them.  Passes may end early: what counts
are the rows that all variants saw, which are random ones of the split (`rows.Rows` shuffles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import confidence
from clover.errors import ConfigError, ModelFailed, ProfileError
from clover.profiling import chains, temperature
from clover.profiling import rows as rows_module
from clover.profiling.observed import Observed, costs_of
from clover.profiling.rows import Rows
from clover.profiling.score import answers
from clover.runtime.batches import elements
from clover.runtime.rows import read_rows
from clover.runtime.slab import Slab
from clover.types import BasePoint, CascadeProfile, FamilySpec, LatencyMeasurement

MOST_KEPT = 1 << 24
"""Values kept of one pass: later rows are not kept (5,000 rows of ten classes are 50,000)."""
LEAST_ROWS = 100
"""Rows of each split below which no cascade is worth judging."""


class Witness:
    """One pass over a split: the answer of each row, and what its score takes, as float32 [rows, K] or [rows]."""

    def __init__(self, spec: FamilySpec) -> None:
        self._spec = spec
        assert spec.confidence is not None
        self._built_in = spec.confidence.built_in
        self._score = confidence.scorer(spec)
        self._index = confidence.output_of(spec)
        self._answers: list[NDArray[Any]] = []
        self._kept: list[NDArray[Any]] = []
        self._room = MOST_KEPT

    def see(self, slab: Slab, slots: list[int]) -> None:
        """Take in the outputs of `slots`.  Raises ProfileError where they give no scores."""
        if self._room <= 0:
            return
        self._answers.append(answers(read_rows(slab, self._spec, 0, slots)))
        try:
            if self._built_in:
                kept = np.array(read_rows(slab, self._spec, self._index, slots))
            else:
                kept = self._score(outputs_of(slab, self._spec, slots))
        except (confidence.ScoreError, ModelFailed) as error:
            raise ProfileError(f"{self._spec.name}: {error}") from error
        self._kept.append(kept)
        self._room -= kept.size

    @property
    def answers(self) -> NDArray[Any]:
        """What each row was answered."""
        return np.concatenate(self._answers)

    def temperature(self, labels: NDArray[Any]) -> float:
        """The temperature that fits `labels` of these rows best; 1.0 where the score has none, or reads another output
        than the one that is labelled."""
        spec = self._spec
        if not self._built_in or self._index != 0 or labels.dtype.kind not in "iu":
            return 1.0
        values = confidence.as_float32(spec, np.concatenate(self._kept))
        known = labels[: len(values)]
        if known.min() < 0 or known.max() >= values.shape[1]:
            return 1.0
        assert spec.confidence is not None
        return temperature.fitted(values, known, logits=spec.confidence.logits)

    def scores(self, temperature: float = 1.0) -> NDArray[np.float32]:
        """The score of each row.  Raises ProfileError where the output gives none."""
        kept = np.concatenate(self._kept)
        if not self._built_in:
            return kept
        outputs: list[NDArray[Any]] = [kept] * (self._index + 1)
        try:
            return confidence.scorer(self._spec, temperature)(outputs)
        except confidence.ScoreError as error:
            raise ProfileError(f"{self._spec.name}: {error}") from error


def outputs_of(slab: Slab, spec: FamilySpec, slots: list[int]) -> list[NDArray[Any]]:
    """All outputs of `slots` as a model returns them: arrays [rows, ...], BYTES as object arrays of bytes.  Raises
    ModelFailed where a worker wrote what its declaration does not allow."""
    found: list[NDArray[Any]] = []
    for index, tensor in enumerate(spec.outputs):
        rows = read_rows(slab, spec, index, slots)
        if isinstance(rows, list):
            shapes = [slab.dims("output", index, slot) if tensor.variable else tensor.shape for slot in slots]
            made = np.empty((len(rows), *shapes[0]), dtype=object)
            for at, (row, shape) in enumerate(zip(rows, shapes, strict=True)):
                try:
                    made[at] = np.array([*elements(row, int(np.prod(shape))), None], object)[:-1].reshape(shape)
                except ValueError as error:
                    raise ModelFailed("the model wrote a BYTES output that is not well formed") from error
            rows = made
        found.append(rows)
    return found


@dataclass
class Evidence:
    """Passes of all variants over both splits, by variant (and backend, as long as none is chosen)."""

    spec: FamilySpec
    held_out_rows: Rows
    calibration_rows: Rows
    held_out: dict[tuple[str, str], Witness] = field(default_factory=dict)
    calibration: dict[str, Witness] = field(default_factory=dict)

    def choose(self, variant: str, backend: str) -> None:
        """Forget what the other backends of `variant` answered."""
        for key in [key for key in self.held_out if key[0] == variant and key[1] != backend]:
            del self.held_out[key]

    def cascade(
        self, backend: Mapping[str, str], latency: Sequence[LatencyMeasurement], base: BasePoint
    ) -> tuple[CascadeProfile, Observed] | None:
        """What chains reach, and the rows that say so; None where a split has too few.  Raises ProfileError where
        there are no scores."""
        names = tuple(backend)
        fitted = [self.calibration[name] for name in names]
        told = {name: seen.temperature(self.calibration_rows.labels) for name, seen in zip(names, fitted, strict=True)}
        best = names.index(base.variant)
        calibration, _ = _split(fitted, list(told.values()), self.calibration_rows, best)
        reported = [self.held_out[name, backend[name]] for name in names]
        held_out, same = _split(reported, list(told.values()), self.held_out_rows, best)
        if min(calibration.rows, held_out.rows) < LEAST_ROWS:
            return None
        observed = Observed(names, calibration, held_out, same)
        assert self.spec.confidence is not None
        costs = costs_of(latency, backend, base)
        return observed.cascade(self.spec.confidence, told, costs, base.variant), observed


def gather(spec: FamilySpec, held_out: Rows, notes: list[str]) -> Evidence | None:
    """Where evidence for cascades of `spec` is kept; None where it does not cascade, with the reason in `notes` unless
    it simply declares no confidence."""
    if spec.confidence is None:
        return None
    if not held_out.labelled:
        notes.append("no cascades: thresholds are chosen on labelled rows, and there is no evaluation set")
        return None
    if len(spec.variants) < 2:
        return None
    try:
        return Evidence(spec, held_out, rows_module.load(spec, "calibration"))
    except ConfigError as error:
        notes.append(f"no cascades: {error}")
        return None


def _split(
    seen: Sequence[Witness], temperatures: Sequence[float], rows: Rows, best: int
) -> tuple[chains.Split, NDArray[np.bool_]]:
    """The rows all variants saw, and on which of them each gives the answer of variant `best`."""
    said = [one.answers for one in seen]
    count = min(map(len, said))
    scores = [one.scores(told)[:count] for one, told in zip(seen, temperatures, strict=True)]
    right = [mine[:count] == rows.labels[:count] for mine in said]
    same = [mine[:count] == said[best][:count] for mine in said]
    return chains.Split(np.stack(scores), np.stack(right)), np.stack(same)
