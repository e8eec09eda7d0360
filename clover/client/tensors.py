"""Tensors on the wire: what a caller gives becomes the binary tensors of a request, and those of an answer arrays.

An array keeps its kind of number, as in `clover.Server.infer`.  FP16, FP32 and FP64 take any floating-point array.
Integer types take any integer array whose values fit.  Integer arrays are not cast to floating point, since pixels
need the scaling of the training.  Lists of Python numbers have no type and are always taken.  BF16 is given and
returned as its bits (uint16).  BYTES inputs take text (as UTF-8), bytes, or files (`pathlib.Path`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.errors import BadRequest, ModelFailed

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "BF16": np.uint16,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    **{f"{kind}INT{bits}": np.dtype(f"{kind.lower()}int{bits}") for kind in ("", "U") for bits in (8, 16, 32, 64)},
}
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the server's metadata declares it: `shape` is that of one row, without the batch axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> TensorInfo:
        """Return the tensor of an object of `inputs` or `outputs` in the metadata."""
        labels = (said.get("parameters") or {}).get("labels") or ()
        return cls(said["name"], said["datatype"], tuple(said["shape"][1:]), tuple(labels))

    def __str__(self) -> str:
        row = ", ".join("any" if axis < 0 else str(axis) for axis in self.shape)
        return f"{self.datatype} of shape [{row}], or with a leading row axis"


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor of a request: its rows as they travel."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def from_rows(cls, tensor: TensorInfo, array: NDArray[Any]) -> WireTensor:
        """Return rows of the declared type as they travel."""
        if tensor.datatype == "BYTES":
            data = b"".join(len(row).to_bytes(_LENGTH_BYTES, "little") + row for row in array.reshape(-1).tolist())
        else:
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return cls(tensor.name, tensor.datatype, array.shape, data)

    def header(self) -> dict[str, Any]:
        """Return its object in the JSON of the request."""
        size = {"binary_data_size": len(self.data)}
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), "parameters": size}


def pack(declared: Sequence[TensorInfo], given: object) -> list[WireTensor]:
    """Return the inputs of a request; see `arrays_of`."""
    columns = arrays_of(declared, given)
    return [WireTensor.from_rows(tensor, columns[tensor.name]) for tensor in declared]


def arrays_of(declared: Sequence[TensorInfo], given: object) -> dict[str, NDArray[Any]]:
    """Return inputs by name as arrays of their types with a leading row axis, BYTES as objects: `given` is a mapping of
    names to values, or the value of a model's only input.

    Raises BadRequest if an input is missing, unknown, or of another type, shape or number of rows.
    """
    if not isinstance(given, Mapping):
        if len(declared) != 1:
            names = ", ".join(tensor.name for tensor in declared)
            raise BadRequest(f"this model takes {len(declared)} inputs: give them by name ({names})")
        given = {declared[0].name: given}
    unknown = [name for name in given if name not in {tensor.name for tensor in declared}]
    missing = [tensor.name for tensor in declared if tensor.name not in given]
    if unknown or missing:
        wanted = "; ".join(f"{tensor.name}: {tensor}" for tensor in declared)
        raise BadRequest(f"unknown inputs: {unknown}, missing inputs: {missing}; the model takes {wanted}")
    columns = {tensor.name: _array_of(tensor, given[tensor.name]) for tensor in declared}
    if len({len(array) for array in columns.values()}) != 1:
        counts = ", ".join(f"{name} {len(array)}" for name, array in columns.items())
        raise BadRequest(f"the inputs differ in their number of rows: {counts}")
    return columns


def _array_of(tensor: TensorInfo, given: object) -> NDArray[Any]:
    array = _elements(tensor, given) if tensor.datatype == "BYTES" else _numbers(tensor, given)
    if array.ndim == len(tensor.shape):
        array = array[np.newaxis]
    row = array.shape[1:]
    if array.ndim != len(tensor.shape) + 1 or any(
        declared not in (-1, axis) for declared, axis in zip(tensor.shape, row, strict=True)
    ):
        raise BadRequest(f"input {tensor.name!r} must be {tensor}, not of shape {list(array.shape)}")
    return array


def _numbers(tensor: TensorInfo, given: object) -> NDArray[Any]:
    """Return `given` as an array of the declared type; raises BadRequest if it is none, or if values do not fit."""
    if isinstance(given, str | bytes | Path):
        raise BadRequest(f"input {tensor.name!r} must be {tensor}: files and text go into BYTES inputs only")
    wanted = np.dtype(DTYPES[tensor.datatype])
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        raise BadRequest(f"input {tensor.name!r} must be {tensor}, and its rows must not differ in length") from None
    if array.dtype == wanted:
        return array
    python = not hasattr(given, "dtype")
    kinds = "iu" if wanted.kind in "iu" else "fiu" if python and wanted.kind == "f" else wanted.kind
    if array.dtype.kind not in kinds or tensor.datatype in ("BF16", "BOOL"):
        hint = "; integers are not cast: scale them as in training" if array.dtype.kind in "iu" else ""
        raise BadRequest(f"input {tensor.name!r} must be {tensor}, not {array.dtype}{hint}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    if wanted.kind == "f":
        lost = np.isinf(cast) & np.isfinite(array)
    else:  # there and back, and with its sign: uint64 turns negative in int64, and back again
        lost = (cast.astype(array.dtype) != array) | ((cast < 0) != (array < 0))
    if lost.any():
        raise BadRequest(f"input {tensor.name!r}: {array[lost].flat[0]} does not fit into {tensor.datatype}")
    return cast


def _elements(tensor: TensorInfo, given: Any) -> NDArray[Any]:
    """Return an object array of bytes: one element is a row by itself if rows have one, so a flat list is rows then."""
    if isinstance(given, str | bytes | bytearray | memoryview | Path):
        given = [given]
    source = np.asarray(given, dtype=object) if not isinstance(given, list | tuple) else _from_lists(given)
    flat = [_element(tensor, element) for element in source.reshape(-1)]
    array = np.empty(len(flat), object)
    array[:] = flat
    if source.ndim == 1 and -1 not in tensor.shape and math.prod(tensor.shape) == 1:
        return array.reshape(len(flat), *tensor.shape)
    return array.reshape(source.shape)


def _from_lists(given: Sequence[Any]) -> NDArray[Any]:
    """Return a nested list as an object array; numpy itself would look into texts and paths."""
    if given and all(isinstance(item, list | tuple) for item in given):
        parts = [_from_lists(item) for item in given]
        if len({part.shape for part in parts}) != 1:
            raise BadRequest("rows of text or files differ in shape; send them apart")
        return np.stack(parts)
    array = np.empty(len(given), object)
    array[:] = list(given)
    return array


def _element(tensor: TensorInfo, given: object) -> bytes:
    if isinstance(given, str):
        return given.encode()
    if isinstance(given, Path):
        return given.read_bytes()
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    raise BadRequest(f"input {tensor.name!r} takes text, bytes or paths of files, not {type(given).__name__}")


def unpack(outputs: Sequence[Mapping[str, Any]], binary: memoryview) -> dict[str, NDArray[Any]]:
    """Return the outputs of an answer by name, with a leading row axis; BYTES as object arrays of bytes.

    Raises ModelFailed if the answer contradicts itself.
    """
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for said in outputs:
        name, datatype, shape = said["name"], said["datatype"], tuple(said["shape"])
        size = (said.get("parameters") or {}).get("binary_data_size")
        try:
            if size is None:
                arrays[name] = _from_json(datatype, shape, said["data"])
            elif datatype == "BYTES":
                arrays[name] = _split(binary[at : at + size], shape)
            else:
                arrays[name] = np.frombuffer(binary[at : at + size], DTYPES[datatype]).reshape(shape).copy()
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFailed(f"the answer's output {name!r} cannot be read") from error
        at += size or 0
    return arrays


def _from_json(datatype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.asarray(data, DTYPES[datatype]).reshape(shape)
    flat = np.asarray(data, object).reshape(-1)
    array = np.empty(len(flat), object)
    array[:] = [one.encode() if isinstance(one, str) else one for one in flat]
    return array.reshape(shape)


def _split(data: memoryview, shape: tuple[int, ...]) -> NDArray[Any]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES + size
        if at > len(data):
            raise ValueError("an element is cut off")
        elements.append(bytes(data[at - size : at]))
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)
