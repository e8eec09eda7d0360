"""The steps of a family that was read: plans by variant, and rows brought from one form to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from clover.datatypes import DATATYPES
from clover.errors import ConfigError
from clover.steps.arithmetic import Labels
from clover.steps.pipeline import Mapper, Pipeline, PlacedStep
from clover.steps.plan import StepPlan, plan_of
from clover.steps.step import At, Column, DataStep, stack_rows
from clover.types import FamilySpec, StepTable, TensorSpec, VariantSpec

DISTINCT = 16
"""Rows that differ; after them come the same again, as pictures and sounds take time to make."""


def sample_rows(
    tensors: Sequence[TensorSpec], steps: Sequence[PlacedStep], rows: int, generator: np.random.Generator
) -> list[NDArray[Any]]:
    """Return `rows` made-up rows of each tensor [rows, ...], valid for the steps that read them: pictures, sounds or
    texts where a step says that it takes them, else as `numbers` makes them."""
    made = []
    for tensor in tensors:
        step = next((one.step for one in steps if one.at.source == tensor.name), None)
        values = [] if step is None else [step.sample(generator) for _ in range(min(rows, DISTINCT))]
        if not values or values[0] is None:
            made.append(numbers(tensor, rows, generator))
        elif tensor.datatype == "BYTES":
            column = np.empty((rows, 1), dtype=object)
            column[:, 0] = [values[at % len(values)] for at in range(rows)]
            made.append(column.reshape(rows, *(1 for _ in tensor.shape)))
        else:
            made.append(np.stack([values[at % len(values)] for at in range(rows)]))
    return made


def numbers(tensor: TensorSpec, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Return made-up rows of `tensor`: floats uniform in 0..1, integers and booleans zero (always a valid index),
    strings "0".

    Variable axes are as long as they may be; of strings, 1.
    """
    if tensor.datatype == "BYTES":
        text = np.empty((rows, *(1 if axis < 0 else axis for axis in tensor.shape)), dtype=object)
        text[:] = b"0"
        return text
    dtype = DATATYPES[tensor.datatype]
    shape = (rows, *tensor.bound)
    if tensor.datatype == "BF16":
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    return np.zeros(shape, dtype)


def with_steps(spec: FamilySpec, folder: Path | None) -> FamilySpec:
    """Return a declared family with its tensors as the program uses them: the family has the tensors that clients send
    and get, each variant those that its model takes and gives.  Raises ConfigError if its steps are wrong."""
    if spec.steps is None or any(variant.inputs for variant in spec.variants):
        return spec
    plans = [plan_of(spec.steps, spec.inputs, spec.outputs, variant, folder) for variant in spec.variants]
    for variant, plan in zip(spec.variants, plans, strict=True):
        if plan.inputs != plans[0].inputs:
            raise ConfigError(
                f"steps.run: {spec.steps.run!r}: a client does not know which variant answers, and {variant.name!r} "
                f"would take other inputs than {spec.variants[0].name!r}: let the steps run in the worker"
            )
    variants = tuple(
        replace(variant, inputs=plan.model_inputs, outputs=plan.model_outputs)
        for variant, plan in zip(spec.variants, plans, strict=True)
    )
    return replace(spec, inputs=plans[0].inputs, outputs=plans[0].outputs, variants=variants)


def describe_steps(spec: FamilySpec) -> dict[str, Any]:
    """Return what a client must know of a family's steps to run its part of them.  Parameters that are the same for all
    variants are filled in.  If the client names the classes, the labels stand in place of their file."""
    assert spec.steps is not None
    first, in_client = spec.variants[0].parameters, spec.steps.run == "client"
    same = {
        name: value
        for name, value in first.items()
        if all(variant.parameters.get(name) == value for variant in spec.variants)
    }

    def filled(table: StepTable) -> StepTable:
        made = {
            key: same.get(value[1:], value) if isinstance(value, str) and value.startswith("$") else value
            for key, value in table.items()
        }
        if in_client and made.get("step") == "labels" and "file" in made and spec.folder:
            names = Labels(file=str(made.pop("file"))).names(At("", "", Path(spec.folder)))
            made["labels"] = [name.decode(errors="replace") for name in names]
        return made

    steps = replace(
        spec.steps,
        before=tuple(filled(table) for table in spec.steps.before),
        after=tuple(filled(table) for table in spec.steps.after),
    )
    description: dict[str, Any] = msgspec.to_builtins(steps)
    return description


def plan_for(spec: FamilySpec, variant: VariantSpec) -> StepPlan | None:
    """Return the step plan of a variant of a family from `with_steps`; None if the family has no steps."""
    if spec.steps is None:
        return None
    folder = Path(spec.folder) if spec.folder else None
    return plan_of(spec.steps, spec.model_inputs(variant), spec.model_outputs(variant), variant, folder)


def row_weights(spec: FamilySpec) -> tuple[int, Callable[[memoryview], int]] | None:
    """Return the index of the BYTES input that decides how much work a worker's steps have with a row, and a function
    from its one element to that work, in ordinary rows.  None if all rows cost the same."""
    plan = plan_for(spec, spec.variants[0]) if spec.variants else None
    for step, at, _ in plan.worker_before.steps if plan is not None else ():
        names = [tensor.name for tensor in spec.inputs]
        if type(step).weight is not DataStep.weight and at.source in names:
            return names.index(at.source), step.weight
    return None


def application_inputs(spec: FamilySpec) -> tuple[TensorSpec, ...]:
    """Return the tensors of the application, before any step."""
    return spec.steps.inputs if spec.steps is not None and spec.steps.inputs else spec.inputs


def as_sent(spec: FamilySpec, rows: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return rows of the application as clients send them: through the client's steps, if it has any.

    Raises ConfigError if a row is refused."""
    plan = plan_for(spec, spec.variants[0])
    if plan is None or not plan.client_before:
        return list(rows)
    return _through(plan.client_before, application_inputs(spec), rows, plan.sent)


def as_modelled(spec: FamilySpec, variant: VariantSpec, rows: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return rows as clients send them as the model of `variant` takes them: through the worker's steps.

    Raises ConfigError if a row is refused."""
    plan = plan_for(spec, variant)
    if plan is None or not plan.worker_before:
        return list(rows)
    return _through(plan.worker_before, spec.inputs, rows, plan.taken)


def made_up(spec: FamilySpec, rows: int, generator: np.random.Generator) -> list[NDArray[Any]]:
    """Return made-up rows of the application, valid for the family's steps."""
    plan = plan_for(spec, spec.variants[0])
    steps = () if plan is None else (*plan.client_before.steps, *plan.worker_before.steps)
    return sample_rows(application_inputs(spec), steps, rows, generator)


def _through(
    pipeline: Pipeline, tensors: Sequence[TensorSpec], rows: Sequence[NDArray[Any]], names: Sequence[str]
) -> list[NDArray[Any]]:
    columns: dict[str, Column] = {tensor.name: column for tensor, column in zip(tensors, rows, strict=True)}
    applied = pipeline.apply(columns, len(rows[0]))
    if applied.refused:
        place, reason = next(iter(applied.refused.items()))
        raise ConfigError(f"row {place} is refused: {reason}")
    return [np.ascontiguousarray(stack_rows(applied.columns[name])) for name in names]


def thread_mapper(threads: int) -> Mapper:
    """Return `map`, or that of a pool of so many threads; decoders of pictures compute outside Python's lock."""
    if threads < 2:
        return map
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, "clover-steps").map
