"""Steps that calculate with tensors: casts, scales, probabilities, the largest few, and their names."""

from __future__ import annotations

import codecs
import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clover.datatypes import DATATYPES
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.steps.step import At, BadRow, Column, DataStep, file_in, fix_shape, read_tensor, stack_rows
from clover.types import TensorSpec

_FLOATS = ("FP16", "FP32", "FP64")
_NUMBERS = tuple(name for name in DATATYPES if name not in ("BYTES", "BF16"))


def map_rows(column: Column, function: Any) -> Column:
    """Return `function` of a whole column, or of its rows if they differ in shape."""
    if isinstance(column, np.ndarray) or len({np.shape(row) for row in column}) == 1:
        made: Column = function(stack_rows(column))
        return made
    return [function(np.asarray(row)[None])[0] for row in column]


class Cast(DataStep, frozen=True, kw_only=True):
    """Numbers of one datatype to another, as NumPy converts them."""

    datatype: str
    arithmetic: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        if self.datatype not in _NUMBERS:
            hint = did_you_mean(self.datatype, _NUMBERS)
            raise ConfigError(f"datatype {self.datatype!r} is none of {', '.join(_NUMBERS)}{hint}")
        given = read_tensor(tensors, at.source, _NUMBERS)
        tensors[at.target] = fix_shape(at.target, self.datatype, given.shape, given.bound)

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        dtype = DATATYPES[self.datatype]
        columns[at.target] = map_rows(columns[at.source], lambda values: values.astype(dtype))


class Scale(DataStep, frozen=True, kw_only=True):
    """Numbers to FP32: times `by`, plus `add`."""

    by: float = 1.0
    add: float = 0.0
    arithmetic: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source, _NUMBERS)
        if not (math.isfinite(self.by) and math.isfinite(self.add)):
            raise ConfigError("by and add are finite")
        tensors[at.target] = fix_shape(at.target, "FP32", given.shape, given.bound)

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        by, add = np.float32(self.by), np.float32(self.add)
        columns[at.target] = map_rows(columns[at.source], lambda values: values.astype(np.float32) * by + add)


class Softmax(DataStep, frozen=True, kw_only=True):
    """Logits to probabilities over the last axis, FP32."""

    arithmetic: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source, _FLOATS)
        if not given.shape:
            raise ConfigError(f"{at.source!r} is one number, which has no probabilities")
        tensors[at.target] = fix_shape(at.target, "FP32", given.shape, given.bound)

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        columns[at.target] = map_rows(columns[at.source], softmax)


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Return the probabilities of logits over the last axis."""
    with np.errstate(invalid="ignore"):  # rows that are not finite
        raised = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32))
        found: NDArray[np.float32] = (raised / raised.sum(axis=-1, keepdims=True)).astype(np.float32)
    return found


class TopK(DataStep, frozen=True, kw_only=True):
    """The `k` largest of a vector, from the largest down: "values" [k], in its datatype, "indices" INT64 [k], and the
    first of these as "index" INT64 [1].  Of equal ones the first comes first."""

    k: int
    arithmetic: ClassVar[bool] = True

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or "values"

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source, _NUMBERS)
        if len(given.shape) != 1 or not 1 <= self.k <= (given.shape[0] if given.shape[0] > 0 else self.k):
            raise ConfigError(f"k = {self.k} does not fit {at.source!r}, which is {list(given.shape)}")
        tensors[at.target] = fix_shape(at.target, given.datatype, (self.k,))
        tensors["indices"] = fix_shape("indices", "INT64", (self.k,))
        tensors["index"] = fix_shape("index", "INT64", (1,))

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        given = stack_rows(columns[at.source])
        if given.shape[1] < self.k:
            raise BadRow(f"a row has {given.shape[1]} values, fewer than the {self.k} asked for")
        order = np.argsort(-given.astype(np.float64), axis=1, kind="stable")[:, : self.k]
        columns[at.target] = np.take_along_axis(given, order, axis=1)
        columns["indices"] = order.astype(np.int64)
        columns["index"] = order[:, :1].astype(np.int64)


class Labels(DataStep, frozen=True, kw_only=True):
    """Indices to their names, which `labels` lists or `file` of the family's folder has, one a line.  It reads
    "indices" and writes "labels"; an index without a name becomes empty."""

    labels: tuple[str, ...] = ()
    file: str = ""
    input: str = "indices"

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or "labels"

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source, ("INT32", "INT64", "UINT8", "UINT16", "UINT32", "INT8", "INT16"))
        names = self.names(at)
        if not names or bool(self.labels) == bool(self.file):
            raise ConfigError("labels, or file with one label a line, is needed")
        room = int(np.prod(given.bound)) * (4 + max(map(len, names)))
        tensors[at.target] = TensorSpec(
            name=at.target, datatype="BYTES", shape=given.shape, max_shape=given.max_shape, max_bytes=room
        )

    def names(self, at: At) -> tuple[bytes, ...]:
        """Return the names as UTF-8."""
        if not self.file:
            return tuple(name.encode() for name in self.labels)
        path = file_in(at.folder, self.file)
        return _lines(str(path), path.stat().st_mtime_ns)

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        names = self.names(at)

        def named(indices: NDArray[Any]) -> NDArray[Any]:
            made = np.empty(indices.shape, dtype=object)
            made.reshape(-1)[:] = [names[one] if 0 <= one < len(names) else b"" for one in indices.ravel().tolist()]
            return made

        columns[at.target] = map_rows(columns[at.source], named)


@lru_cache(maxsize=16)
def _lines(path: str, changed_ns: int) -> tuple[bytes, ...]:
    """Return the lines of a file of labels as it was changed last at `changed_ns`."""
    with open(path, "rb") as file:
        return tuple(file.read().removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").splitlines())
