"""Drafts of ONNX files: inputs and outputs from the graph, axes that it leaves open from a run."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.backends import parity
from clover.backends.artifacts import package_version
from clover.backends.onnxruntime import session
from clover.backends.quantised import CALIBRATION_ROWS, CalibrationFeed, quantise
from clover.errors import CloverError
from clover.families import DATATYPES
from clover.families.onnx_files import external_files
from clover.importing import folder
from clover.importing.draft import DraftError, DraftVariant, FamilyDraft, scores_of, template
from clover.types import TensorSpec

SEQUENCE, SIDE = 512, 224
"""OpenBounds of axes that a graph leaves open: of a sequence, and of the sides of a picture."""

TEXT_BYTES = 65_536
_KINDS = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip


@dataclass(frozen=True)
class OnnxModel:
    """What a file takes and gives.  `rows`: of its batches, 0 if they vary."""

    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: int
    notes: tuple[str, ...] = ()
    probabilities: bool = False


def require() -> None:
    """Raise DraftError if the packages of the extra `onnx` are missing."""
    if missing := [name for name in ("onnx", "onnxruntime") if not package_version(name)]:
        raise DraftError(f"ONNX files need {', '.join(missing)}: pip install 'clover-inference[onnx]'")


def draft_of(name: str, files: Sequence[str], given: Sequence[TensorSpec] = ()) -> FamilyDraft:
    """Return the draft of ONNX files, from cheap to dear, which take and give the same.  Raises DraftError."""
    require()
    models = [look_at(Path(file), given) for file in files]
    best = models[-1]
    for model in models:
        if (model.inputs, model.outputs, model.rows) != (best.inputs, best.outputs, best.rows):
            raise DraftError(f"{model.file} and {best.file} take or give something else: make families of them")
    names = [re.sub(r"[^A-Za-z0-9._-]", "-", model.file.stem) for model in models]
    if len(set(names)) < len(names):
        raise DraftError("two of the ONNX files have one name, and would be one variant: rename one")
    ordered = sorted(zip(names, models, strict=True), key=lambda pair: _bytes(pair[1].file))
    copies: dict[str, Path] = {}
    for stem, model in ordered:
        copies |= copies_of(model.file, stem)
    return FamilyDraft(
        name=name,
        source=", ".join(Path(file).name for file in files),
        inputs=best.inputs,
        outputs=best.outputs,
        variants=tuple(
            _variant(stem, f"{_bytes(model.file) / 1e6:.1f} MB", next(iter(copies_of(model.file, stem))))
            for stem, model in ordered
        ),
        max_batch=best.rows or 32,
        confidence=scores_of(best.outputs, logits=not best.probabilities),
        files={"model.py": model_py(best)},
        copies=copies,
        notes=best.notes,
    )


def model_py(model: OnnxModel, reshaped: Mapping[str, Sequence[int]] | None = None) -> str:
    """Return the loader of a family whose variants are ONNX files that take and give what `model` does."""
    texts = tuple(output.name for output in model.outputs if output.datatype == "BYTES")
    return template(
        "onnx_model",
        inputs=tuple(tensor.name for tensor in model.inputs),
        outputs=tuple(output.name for output in model.outputs),
        texts=texts,
        rows=model.rows,
        reshaped=dict(reshaped or {}),
    )


def copies_of(file: Path, name: str) -> dict[str, Path]:
    """Return what is copied of an ONNX file that becomes the variant `name`, by the place in the family: first itself.

    One whose weights lie in files beside it has a folder of its own: it names those files, and another's may have the
    same names.  Raises DraftError.
    """
    beside = external(file)
    folder = f"weights/{name}/" if beside else "weights/"
    return {f"{folder}{name}.onnx": file, **{f"{folder}{path.name}": path for path in beside}}


def _variant(name: str, comment: str, weights: str) -> DraftVariant:
    return DraftVariant(name=name, kind="python", weights=weights, comment=comment)


def with_int8(draft: FamilyDraft, scratch: Path) -> FamilyDraft:
    """Return the draft with its last variant in eight bits as one more, quantised on its calibration rows.

    What cannot be quantised is left out, and a note says why.
    """
    last = draft.variants[-1]
    if not any(tensor.datatype == "FP32" for tensor in draft.inputs):
        return draft.noting("no variant in eight bits: the model takes no floats")
    made = scratch / f"{last.name}-int8.onnx"
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            spec = folder.write(draft, Path(place) / "family", os.symlink)
            rows = parity.rows_of(spec, spec.variants[-1], CALIBRATION_ROWS)
            source = Path(spec.folder) / last.weights
            names = [item.name for item in session(source, 1).get_inputs()]
            quantise(source, made, CalibrationFeed(rows, names, spec))
    except (CloverError, OSError) as error:
        return draft.noting(f"no variant in eight bits: {' '.join(str(error).split())[:300]}")
    if _bytes(made) > 0.9 * _bytes(draft.copies[last.weights]):
        return draft.noting("no variant in eight bits: nothing of the model became smaller")
    told = "the same in eight bits, ranges by the calibration rows"
    small = _variant(made.stem, told, f"weights/{made.name}")
    return replace(
        draft,
        variants=(*draft.variants[:-1], small, last),
        copies={**draft.copies, small.weights: made},
    )


def look_at(file: Path, given: Sequence[TensorSpec] = ()) -> OnnxModel:
    """Return what an ONNX file takes and gives.  `given` says more of inputs whose axes the graph leaves open.

    Raises DraftError.
    """
    import onnx

    if not file.is_file():
        raise DraftError(f"there is no file {file}")
    external(file)
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # protobuf's own kinds, which onnx does not export
        raise DraftError(f"{file} is no ONNX model: {' '.join(str(error).split())[:200]}") from error
    constants = {one.name for one in graph.initializer}
    takes = [one for one in graph.input if one.name not in constants]
    if not takes:
        raise DraftError(f"{file} takes no input")
    shapes = [_axes(one, file) for one in takes]
    first = {axes[0] for _, axes in shapes}
    if len(first) > 1:
        raise DraftError(
            f"{file}: its inputs begin with axes of different size, {sorted(map(str, first))}: no batch axis"
        )
    head = first.pop()
    rows = head if isinstance(head, int) else 0
    known = {one.name: one for one in given}
    if strange := set(known) - {one.name for one in takes}:
        raise DraftError(
            f"--input: {file} takes no {', '.join(sorted(strange))}: it takes {', '.join(o.name for o in takes)}"
        )
    notes: list[str] = []
    inputs = tuple(
        _tensor(one.name, kind, axes[1:], known.get(one.name), notes)
        for one, (kind, axes) in zip(takes, shapes, strict=True)
    )
    if rows:
        notes.append(f"the graph is fixed to batches of {rows}: export it with an open first axis for larger ones")
    outputs, probabilities = _outputs(file, inputs, rows or 2)
    return OnnxModel(file, inputs, outputs, rows, tuple(notes), probabilities)


def _axes(value: Any, file: Path) -> tuple[str, list[int | str]]:
    """Return datatype and axes of a value of the graph, an open axis as its name.  Raises DraftError."""
    if not value.type.HasField("tensor_type"):
        raise DraftError(
            f"{file}: {value.name} is no tensor (sequences and maps are not served): export it without them"
        )
    tensor = value.type.tensor_type
    kind = _KINDS.get(tensor.elem_type)
    if kind is None:
        raise DraftError(f"{file}: {value.name} has the ONNX type {tensor.elem_type}, which is not served: cast it")
    axes = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    if not axes:
        raise DraftError(f"{file}: {value.name} has no axes, so no batch axis: export it with one")
    return kind, axes


def _tensor(name: str, kind: str, axes: Sequence[int | str], given: TensorSpec | None, notes: list[str]) -> TensorSpec:
    """Return an input a row; open axes are bounded as `given` says, or by a guess that is noted."""
    if given is not None:
        if given.datatype != kind or len(given.shape) != len(axes):
            raise DraftError(f"--input {name}: the graph says {kind} {list(axes)}, without the batch axis")
        return given
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in axes)
    bound: tuple[int, ...] = ()
    if -1 in shape:
        side = SIDE if len(axes) == 3 else SEQUENCE
        bound = tuple(axis if axis > 0 else side for axis in shape)
        notes.append(
            f"{name}: the graph leaves axes open, {list(axes)}; rows of up to {list(bound)} are taken (max_shape)"
        )
    room = 4 * int(np.prod(bound or shape)) + TEXT_BYTES if kind == "BYTES" else 0
    return TensorSpec(name=name, datatype=kind, shape=shape, max_shape=bound, max_bytes=room)


def _outputs(file: Path, inputs: Sequence[TensorSpec], rows: int) -> tuple[tuple[TensorSpec, ...], bool]:
    """Return what a model gives for made-up rows, and whether the first output holds probabilities."""
    try:
        loaded = session(file, 1)
        large = loaded.run(None, _feeds(inputs, rows, full=True))
        small = loaded.run(None, _feeds(inputs, rows, full=False)) if any(one.variable for one in inputs) else large
    except Exception as error:  # ONNX Runtime's own kinds
        text = " ".join(str(error).split())[:300]
        raise DraftError(f"{file} does not run: {text}: say what it takes with --input NAME:DATATYPE:SHAPE") from error
    outputs = []
    for item, one, other in zip(loaded.get_outputs(), large, small, strict=True):
        if not isinstance(one, np.ndarray) or one.ndim == 0 or len(one) != rows:
            raise DraftError(f"{file}: output {item.name} does not begin with the batch axis: {rows} rows went in")
        bound = one.shape[1:]
        shape = tuple(a if a == b else -1 for a, b in zip(bound, other.shape[1:], strict=True))
        kind = next((key for key, dtype in DATATYPES.items() if dtype == one.dtype and key != "BF16"), "BYTES")
        room = 4 * int(np.prod(bound)) + TEXT_BYTES if kind == "BYTES" else 0
        outputs.append(
            TensorSpec(
                name=item.name, datatype=kind, shape=shape, max_shape=bound if -1 in shape else (), max_bytes=room
            )
        )
    first = large[0].reshape(rows, -1)
    sums = (
        first.dtype.kind == "f"
        and first.shape[1] > 1
        and (first >= 0).all()
        and np.allclose(first.sum(1), 1, atol=1e-3)
    )
    return tuple(outputs), bool(sums)


def _feeds(inputs: Sequence[TensorSpec], rows: int, *, full: bool) -> dict[str, NDArray[Any]]:
    """Return made-up rows; variable axes at their bound, or at a half of it."""
    generator, made = np.random.default_rng(0), {}
    for tensor in inputs:
        sizes = zip(tensor.shape, tensor.bound, strict=True)
        shape = (rows, *(most if full or size > 0 else max(1, most // 2) for size, most in sizes))
        dtype = DATATYPES[tensor.datatype]
        if tensor.datatype == "BYTES":
            made[tensor.name] = np.full(shape, "0", dtype=object)
        else:
            made[tensor.name] = generator.random(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return made


def external(file: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, if they are not inside.  Raises DraftError.

    A link may lead to where a link of the ONNX file itself leads: to the store of a cache of published models.
    """
    try:
        names = external_files(file)
    except ValueError as error:
        raise DraftError(f"{file} is no ONNX model: {error}") from error
    for name in names:
        if Path(name).name != name or name == file.name or not os.path.isfile(file.parent / name):
            raise DraftError(f"{file}: its weights are to be in {name!r}: that must be a file beside it")
        folder.inside(file.parent / name, file.parent, file.resolve().parent)
    return [file.parent / name for name in names]


def _bytes(file: Path) -> int:
    return file.stat().st_size + sum(path.stat().st_size for path in external(file))


def names_of(file: Path) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of a file.  Raises DraftError if it cannot be loaded."""
    try:
        loaded = session(file, 1)
    except Exception as error:  # ONNX Runtime's own kinds
        raise DraftError(f"{file.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return [entry.name for entry in loaded.get_inputs()], [entry.name for entry in loaded.get_outputs()]
