"""The steps of a model that its client runs, as its metadata declares them: pictures to tensors before, names after.

`run = "client"`: all steps are the client's.  "split": those up to the first that only calculates, and none after the
model.  "worker": none.  What a step needs (pillow, tokenizers) has to be installed here; files that it needs lie in the
family's folder, which the client has to be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.client.tensors import TensorInfo
from clover.errors import BadRequest, ConfigError, ModelFailed
from clover.steps import STEPS, BadRow, Column, StepPlan, plan_of, stacked
from clover.types import StepsSpec, TensorSpec, VariantSpec

_ANY = VariantSpec(name="any", loader="no:where")
"""Stands for the variant, which a client does not know."""


class ClientSteps:
    """The client's part of a model's steps.  `inputs` and `outputs` are what the caller gives and gets."""

    def __init__(
        self, plan: StepPlan, spec: StepsSpec, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
    ) -> None:
        self._plan = plan
        self._wire = [tensor.name for tensor in inputs]
        self.inputs = tuple(map(_info, spec.inputs)) if plan.client_before else tuple(inputs)
        self.outputs = tuple(map(_info, spec.outputs)) if plan.client_after else tuple(outputs)

    def before(self, columns: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, Column]]:
        """Return the inputs of the request, by name with a leading row axis, and all tensors that there are by now, for
        the steps after the model; raises BadRequest for a row that a step cannot take."""
        rows = len(next(iter(columns.values())))
        try:
            applied = self._plan.client_before.apply(columns, rows)
            if applied.refused:
                place, reason = next(iter(applied.refused.items()))
                raise BadRequest(f"row {place} is refused: {reason}")
            names = zip(self._wire, self._plan.sent, strict=True)
            return {wire: stacked(applied.columns[name]) for wire, name in names}, applied.columns
        except BadRow as error:
            raise BadRequest(str(error)) from error

    def after(self, there: Mapping[str, Column], outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs that the caller gets, by name with a leading row axis; raises ModelFailed if the answer is
        none that the steps can take."""
        if not self._plan.client_after:
            return dict(outputs)
        rows = len(next(iter(outputs.values())))
        try:
            applied = self._plan.client_after.apply({**there, **outputs}, rows)
            if applied.refused:
                raise ModelFailed(f"an answer is refused by a step: {next(iter(applied.refused.values()))}")
            names = zip(self.outputs, self._plan.given, strict=True)
            return {tensor.name: _array(applied.columns[name]) for tensor, name in names}
        except BadRow as error:
            raise ModelFailed(f"an answer is refused by a step: {error}") from error


def steps_of(
    said: Mapping[str, Any], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], folder: Path | None
) -> ClientSteps | None:
    """Return the client's steps of a model whose metadata is `said`; None if it has none.

    Raises ConfigError if they cannot be run here.
    """
    declared = (said.get("parameters") or {}).get("steps")
    if declared is None or declared.get("run") not in ("client", "split"):
        return None
    try:
        spec = msgspec.convert(declared, StepsSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the steps of this model are none that this version knows: {error}") from error
    if spec.run == "split":
        before = spec.before[: _calculates_from(spec)]
        spec = msgspec.structs.replace(spec, before=before, after=(), outputs=(), inputs=spec.inputs if before else ())
    own = msgspec.structs.replace(spec, run="client")
    plan = plan_of(own, _specs(inputs), _specs(outputs), _ANY, folder)
    return ClientSteps(plan, own, inputs, outputs)


def _calculates_from(spec: StepsSpec) -> int:
    """Return how many steps of a split family are the client's: those before the first that only calculates."""
    for index, table in enumerate(spec.before):
        kind = STEPS.get(str(table.get("step")))
        if kind is not None and kind.arithmetic:
            return index
    return len(spec.before)


def _specs(tensors: Sequence[TensorInfo]) -> list[TensorSpec]:
    """Return tensors of the wire as steps know them; what their rows may take is not known here."""
    most = 1 << 30
    return [
        TensorSpec(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tensor.shape,
            max_shape=tuple(most if axis < 0 else axis for axis in tensor.shape) if -1 in tensor.shape else (),
            max_bytes=most if tensor.datatype == "BYTES" else 0,
            labels=tensor.labels,
        )
        for tensor in tensors
    ]


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.datatype, tensor.shape, tensor.labels)


def _array(column: Column) -> NDArray[Any]:
    """Return a column as an array with a leading row axis, of objects if its rows differ in shape."""
    if isinstance(column, np.ndarray):
        return column
    if len({np.shape(row) for row in column}) == 1:
        return np.stack(column)
    array = np.empty(len(column), object)
    array[:] = column
    return array
