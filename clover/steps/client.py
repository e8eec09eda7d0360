"""The steps of a family in a client, from the model's metadata alone.

steps = ClientSteps.from_metadata(metadata)            # the answer to GET /v2/models/NAME
sent = steps.before({"image": [data]})      # `data`: what the application has
... send `sent.inputs`, receive `outputs` ...
answer = steps.after(sent, outputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps.pipeline import Pipeline, TensorFlow
from clover.steps.plan import made_in_client
from clover.steps.step import UNBOUNDED, BadRow, Column, stack_rows
from clover.types import StepsSpec, TensorSpec


@dataclass(frozen=True)
class PreparedRows:
    """Rows as they are sent, by input, and all that there was of them in the client, which steps after the model may
    read."""

    inputs: dict[str, NDArray[Any]]
    columns: dict[str, Column]
    rows: int


class ClientSteps:
    """Runs the client's steps.  `inputs` and `outputs` are the tensors of the application; `idle` says that no step is
    the client's."""

    def __init__(
        self, spec: StepsSpec, sent: Sequence[TensorSpec], given: Sequence[TensorSpec], folder: Path | None = None
    ) -> None:
        before, after = made_in_client(spec)
        self.inputs = spec.inputs or tuple(sent)
        self.outputs = tuple(given) if spec.run != "client" else spec.outputs or tuple(given)
        flow = TensorFlow(self.inputs)
        self._before = Pipeline([flow.place(step, folder) for step in before])
        self._sent, _ = flow.pick(sent)
        self._wire = tuple(tensor.name for tensor in sent)
        flow.add(given)
        self._after = Pipeline([flow.place(step, folder) for step in after])
        self._given, _ = flow.pick(self.outputs)
        self.idle = not self._before and not self._after

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], folder: Path | None = None) -> ClientSteps | None:
        """Return the client's steps of a model by its metadata; None if it has none.

        `folder` holds the files that steps of the client read, if there are any.  Raises ConfigError.
        """
        described = (metadata.get("parameters") or {}).get("steps")
        if described is None:
            return None
        try:
            spec = msgspec.convert(described, StepsSpec)
        except msgspec.ValidationError as error:
            raise ConfigError(f"the model's steps are of another version of Clover: {error}") from error
        steps = cls(spec, _tensors(metadata["inputs"]), _tensors(metadata["outputs"]), folder)
        return None if steps.idle else steps

    def before(self, values: Mapping[str, Any]) -> PreparedRows:
        """Return rows as they are sent; `values` has by input an array [rows, ...], or for BYTES a list of `bytes`.

        Raises BadRow, whose text names the row, if one cannot be taken.
        """
        missing = [tensor.name for tensor in self.inputs if tensor.name not in values]
        if missing:
            raise BadRow(f"input {missing[0]!r} is missing")
        columns = {tensor.name: _column(tensor, values[tensor.name]) for tensor in self.inputs}
        counts = {len(column) for column in columns.values()}
        if len(counts) != 1:
            raise BadRow("the inputs have different numbers of rows")
        rows = counts.pop()
        applied = self._before.apply(columns, rows)
        if applied.refused:
            place, reason = next(iter(applied.refused.items()))
            raise BadRow(f"row {place}: {reason}" if rows > 1 else reason)
        pairs = zip(self._wire, self._sent, strict=True)
        inputs = {wire: np.ascontiguousarray(stack_rows(applied.columns[name])) for wire, name in pairs}
        return PreparedRows(inputs, applied.columns, rows)

    def after(self, sent: PreparedRows, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return what the application gets, from what the model gave for the rows `sent`: arrays [rows, ...], of
        objects if rows differ in shape.  Raises BadRow."""
        applied = self._after.apply({**sent.columns, **outputs}, sent.rows)
        if applied.refused:
            raise BadRow(next(iter(applied.refused.values())))
        names = zip([tensor.name for tensor in self.outputs], self._given, strict=True)
        return {name: _array(applied.columns[own]) for name, own in names}


def _array(column: Column) -> NDArray[Any]:
    if isinstance(column, np.ndarray) or len({np.shape(row) for row in column}) == 1:
        return stack_rows(column)
    array = np.empty(len(column), object)
    array[:] = column
    return array


def _tensors(listed: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the tensors of a model's metadata, whose shapes begin with the batch axis."""
    specs = []
    for entry in listed:
        shape = tuple(entry["shape"][1:])
        bound = tuple(UNBOUNDED if axis < 0 else axis for axis in shape) if min(shape, default=0) < 0 else ()
        room = UNBOUNDED << 10 if entry["datatype"] == "BYTES" else 0
        made = TensorSpec(name=entry["name"], datatype=entry["datatype"], shape=shape, max_shape=bound, max_bytes=room)
        specs.append(made)
    return tuple(specs)


def _column(tensor: TensorSpec, values: Any) -> NDArray[Any]:
    """Return rows of an input as an array [rows, ...]; single elements of BYTES, or of one value, need no axis of their
    own."""
    if tensor.datatype == "BYTES" and not isinstance(values, np.ndarray):
        made = np.empty(len(values), dtype=object)
        made[:] = values
        values = made
    array = np.asarray(values)
    return array.reshape(len(array), *tensor.shape) if tensor.shape == (1,) else array
