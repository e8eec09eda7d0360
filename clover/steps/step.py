"""What a step is: a declared, checked operation on the named tensors of rows.

A step reads the tensor that the step before it wrote (at first the first one there is), unless `input` names another,
and writes its result under the same name, unless `output` names another.  What it does not write stays there for later
steps.  `flow` says what tensors a step makes without running it, `row` computes one row, `batch` a whole batch; a
step has one of the two, or both, one after the other.

A tensor of a row is an array of the tensor's shape; one of BYTES is an array of `bytes` objects.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.cache import fetched_files
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.types import TensorSpec

Column = list[Any] | NDArray[Any]
"""A tensor of a batch: an array [rows, ...], or the rows one by one."""

UNBOUNDED = 1 << 20
"""The bound of an axis of which nothing is known."""


class BadRow(ValueError):
    """A row that a step cannot take.  The text is the client's to read."""


class At(NamedTuple):
    """Where a step works: the tensor it reads, the one it writes, and the family's folder with its files (None if they
    are not here).  `then` is the next step if it replaces what this step writes, so that no other step sees it."""

    source: str
    target: str
    folder: Path | None
    then: DataStep | None = None


class DataStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every step.  The fields are its parameters."""

    input: str = ""
    output: str = ""

    by_row: ClassVar[bool] = False
    """Whether it computes row by row (`row`) rather than whole batches (`batch`)."""
    then_batch: ClassVar[bool] = False
    """Whether `batch` is to be called after `row`."""
    arithmetic: ClassVar[bool] = False
    """Whether it only calculates with tensors of fixed form, so that a split family runs it in the worker."""

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or source

    def also_reads(self) -> tuple[str, ...]:
        """Return the tensors that it reads beside its source."""
        return ()

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """Add the tensors that the step makes to `tensors`.  Raises ConfigError if it cannot work on them."""
        raise NotImplementedError

    def row(self, values: dict[str, Any], at: At) -> None:
        """Put what it makes of one row's `values` into them.  Raises BadRow."""
        raise NotImplementedError

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """Put what it makes of a batch's `columns` into them."""
        raise NotImplementedError

    def weight(self, data: memoryview) -> int:
        """Return the work of a row in ordinary rows, from the one element of BYTES that the step reads."""
        return 1

    def sample(self, generator: np.random.Generator) -> Any:
        """Return a made-up value for the tensor that the step reads; None if any value will do."""
        return None


def stack_rows(column: Column) -> NDArray[Any]:
    """Return a column as one array [rows, ...]; raises BadRow if the rows differ in shape."""
    if isinstance(column, np.ndarray):
        return column
    try:
        return np.stack(column)
    except ValueError as error:
        raise BadRow("the rows of a batch differ in shape: a `pad` step makes them alike") from error


def fix_shape(name: str, datatype: str, shape: tuple[int, ...], bound: tuple[int, ...] = ()) -> TensorSpec:
    """Return a tensor of the flow; `bound` is needed if an axis varies."""
    return TensorSpec(name=name, datatype=datatype, shape=shape, max_shape=bound if min(shape, default=0) < 0 else ())


def read_tensor(tensors: dict[str, TensorSpec], name: str, kinds: tuple[str, ...] = ()) -> TensorSpec:
    """Return the tensor `name`, whose datatype is one of `kinds`.  Raises ConfigError if there is none."""
    spec = tensors.get(name)
    if spec is None:
        raise ConfigError(f"there is no tensor {name!r} here{did_you_mean(name, tensors)}: {', '.join(tensors)}")
    if kinds and spec.datatype not in kinds:
        raise ConfigError(f"it takes {' or '.join(kinds)}, and {name!r} is {spec.datatype}")
    return spec


def read_text(tensors: dict[str, TensorSpec], name: str) -> TensorSpec:
    """Return the tensor `name`, of which a row is one element of BYTES.  Raises ConfigError if it is not."""
    spec = read_tensor(tensors, name, ("BYTES",))
    if spec.variable or math.prod(spec.shape) != 1:
        raise ConfigError(f"it takes one element a row, shape [1], and {name!r} is {list(spec.shape)}")
    return spec


def text_of(value: Any) -> bytes:
    """Return the one element of a row of BYTES; raises BadRow if there is not exactly one."""
    flat = np.asarray(value, dtype=object).reshape(-1)
    if len(flat) != 1:
        raise BadRow(f"a row holds {len(flat)} elements instead of one")
    element = flat[0]
    return element.encode() if isinstance(element, str) else bytes(element)


def bytes_row(*elements: bytes) -> NDArray[Any]:
    """Return a row of BYTES elements."""
    made = np.empty(len(elements), dtype=object)
    made[:] = elements
    return made


def file_in(folder: Path | None, file: str) -> Path:
    """Return the path of a step's file.  Raises ConfigError if it is neither in the family's folder nor among the
    published files that were fetched."""
    if folder is None:
        raise ConfigError(f"needs the file {file!r} of the family's folder, which is not here: give the folder")
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"file {file!r} must be a path below the family's folder, without '..'")
    if path.is_file():
        return path
    if "/" not in file and (fetched := fetched_files() / file).is_file():
        return fetched
    raise ConfigError(f"no file {file!r} in the family's folder")
