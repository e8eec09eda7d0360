"""From a declaration to what runs where: the steps of one variant, checked, with the tensors between them.

`plan_of` follows the tensors from what the application has, through the client's steps, over the wire, through the
worker's, into the model and back.  A variable axis of the model's declared inputs is as long as the variant's steps
make it, so variants may take inputs of different size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.steps.arithmetic import Cast, Labels, Scale, Softmax, TopK
from clover.steps.boxes import Boxes
from clover.steps.images import Crop, DecodeImage, Normalise, Resize
from clover.steps.pipeline import Pipeline, PlacedStep, TensorFlow
from clover.steps.sounds import DecodeWav, Frame, Pad
from clover.steps.step import DataStep
from clover.steps.texts import TextSpan, Tokenise
from clover.types import StepsSpec, StepTable, TensorSpec, VariantSpec

STEPS: dict[str, type[DataStep]] = {
    "boxes": Boxes,
    "cast": Cast,
    "crop": Crop,
    "decode-image": DecodeImage,
    "decode-wav": DecodeWav,
    "frame": Frame,
    "labels": Labels,
    "normalise": Normalise,
    "pad": Pad,
    "resize": Resize,
    "scale": Scale,
    "softmax": Softmax,
    "span": TextSpan,
    "tokenise": Tokenise,
    "top-k": TopK,
}


@dataclass(frozen=True)
class StepPlan:
    """What runs where for one variant.

    application -- client_before --> `inputs` (named by `sent`), over the wire
                -- worker_before --> `model_inputs` (named by `taken`), into the model
    `model_outputs` -- worker_after --> `outputs` (named by `given`), over the wire
    """

    client_before: Pipeline
    sent: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    worker_before: Pipeline
    taken: tuple[str, ...]
    model_inputs: tuple[TensorSpec, ...]
    model_outputs: tuple[TensorSpec, ...]
    worker_after: Pipeline
    given: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]


def plan_of(
    spec: StepsSpec,
    model_inputs: Sequence[TensorSpec],
    model_outputs: Sequence[TensorSpec],
    variant: VariantSpec,
    folder: Path | None,
) -> StepPlan:
    """Return what the steps of a family do for one of its variants, whose model takes and gives these tensors.

    `folder` holds the files that steps need.  Raises ConfigError, which names the step.
    """
    for key, steps, tensors in (("inputs", spec.before, spec.inputs), ("outputs", spec.after, spec.outputs)):
        if bool(steps) != bool(tensors):
            raise ConfigError(f"steps.{key}: must be there if there are steps, and only then")
    before = [_make_step(table, variant, f"steps.before[{index}]") for index, table in enumerate(spec.before)]
    after = [_make_step(table, variant, f"steps.after[{index}]") for index, table in enumerate(spec.after)]
    flow = TensorFlow(spec.inputs or model_inputs)
    placed = [_place(flow, step, folder, f"steps.before[{index}]") for index, step in enumerate(before)]
    there = dict(flow.tensors)
    taken, narrow = _within("steps.before", flow.pick, model_inputs)
    cut = {"worker": 0, "client": len(placed), "split": _find_cut(before)}[spec.run]
    sent: tuple[str, ...] = ()
    inputs = tuple(spec.inputs or model_inputs)
    if spec.run == "client":
        sent, inputs = taken, narrow
    elif cut:
        sent, inputs = _crossing(spec, before[:cut], placed[cut:], taken, folder)
        there = _after_the_wire(inputs, placed[cut:])
    flow.tensors = there
    flow.add(model_outputs)
    ended = [_place(flow, step, folder, f"steps.after[{index}]") for index, step in enumerate(after)]
    given, _ = _within("steps.after", flow.pick, spec.outputs or model_outputs)
    _check_answer(ended, given[0])
    in_client = spec.run == "client"
    return StepPlan(
        client_before=Pipeline(placed[:cut]),
        sent=sent,
        inputs=inputs,
        worker_before=Pipeline(placed[cut:]),
        taken=taken,
        model_inputs=narrow,
        model_outputs=tuple(model_outputs),
        worker_after=Pipeline([] if in_client else ended),
        given=given,
        outputs=tuple(model_outputs if in_client else spec.outputs or model_outputs),
    )


def _check_answer(steps: Sequence[PlacedStep], first: str) -> None:
    """Raise ConfigError if the first output is sorted.  Answers are compared by its largest element, which would always
    be the first, so all answers would look alike."""
    made = [placed.step for placed in steps if first in placed.writes]
    if made and isinstance(made[-1], TopK) and first not in ("indices", "index"):
        raise ConfigError(
            f"steps.outputs: the first is the answer, by which variants and labels are compared, and {first!r} holds "
            "sorted values: put what a `labels` step makes of 'index', or 'index', before it"
        )


def made_in_client(spec: StepsSpec) -> tuple[list[DataStep], list[DataStep]]:
    """Return the client's steps before and after the model.  Raises ConfigError for a step that is unknown here or
    depends on the variant."""
    if spec.run == "worker":
        return [], []
    anyone = VariantSpec(name="any", loader="")
    before = []
    for index, table in enumerate(spec.before):
        kind = STEPS.get(str(table.get("step")))
        if spec.run == "split" and kind is not None and kind.arithmetic:
            break
        before.append(_make_step(table, anyone, f"steps.before[{index}]"))
    after = spec.after if spec.run == "client" else ()
    return before, [_make_step(table, anyone, f"steps.after[{index}]") for index, table in enumerate(after)]


def _find_cut(steps: Sequence[DataStep]) -> int:
    """Return how many steps of a split family run in the client: those before the first that only calculates."""
    return next((index for index, step in enumerate(steps) if step.arithmetic), len(steps))


def _crossing(
    spec: StepsSpec, client: Sequence[DataStep], rest: Sequence[PlacedStep], taken: Sequence[str], folder: Path | None
) -> tuple[tuple[str, ...], tuple[TensorSpec, ...]]:
    """Return the tensors of a split family that the client sends: those that the worker's steps or the model read."""
    flow = TensorFlow(spec.inputs)
    for step in client:
        flow.place(step, folder)
    read = [name for placed in rest for name in (placed.at.source, *placed.step.also_reads())]
    made = {name for placed in rest for name in placed.writes}
    names = [name for name in flow.tensors if name in read or (name in taken and name not in made)]
    for name in names:
        tensor = flow.tensors[name]
        if tensor.datatype == "BYTES":
            raise ConfigError(f"steps.run: {name!r} is still BYTES where a split family leaves the client")
        if tensor.variable:
            raise ConfigError(f"steps.run: {name!r} has no fixed shape where a split family leaves the client")
    return tuple(names), tuple(flow.tensors[name] for name in names)


def _after_the_wire(inputs: Sequence[TensorSpec], placed: Sequence[PlacedStep]) -> dict[str, TensorSpec]:
    """Return the tensors that a worker has after its steps of a split family."""
    flow = TensorFlow(inputs)
    for step in placed:
        step.step.flow(flow.tensors, step.at)
    return flow.tensors


def _place(flow: TensorFlow, step: DataStep, folder: Path | None, where: str) -> PlacedStep:
    name = next(name for name, kind in STEPS.items() if kind is type(step))
    placed: PlacedStep = _within(f"{where} ({name})", flow.place, step, folder)
    return placed


def _within(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function`; a ConfigError of it says `where`."""
    try:
        return function(*args)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _make_step(table: StepTable, variant: VariantSpec, where: str) -> DataStep:
    """Return the step that a table declares, with the parameters of a variant."""
    given = dict(table)
    name = given.pop("step", None)
    kind = STEPS.get(name) if isinstance(name, str) else None
    if kind is None:
        hint = did_you_mean(str(name or ""), STEPS)
        raise ConfigError(f"{where}.step: {name!r} is unknown{hint}: it is one of {', '.join(STEPS)}")
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key, value in given.items():
        if key not in fields:
            raise ConfigError(f"{where} ({name}): {key}: unknown key{did_you_mean(key, fields)}: {', '.join(fields)}")
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in variant.parameters:
                hint = did_you_mean(value[1:], variant.parameters)
                raise ConfigError(
                    f"{where} ({name}): {key}: variant {variant.name!r} has no parameter {value[1:]!r}{hint}"
                )
            given[key] = variant.parameters[value[1:]]
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} ({name}): {error}") from error
