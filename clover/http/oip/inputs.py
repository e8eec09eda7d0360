"""A declared input, compiled: which shapes it takes, and how errors name it and what a client sent.

A body says how many rows it carries before it carries them.  `DeclaredInput.check_shape` bounds that number, by what
the family takes and by the size of the body, before any array of that size is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from clover.errors import BadRequest, RequestError, TooLarge
from clover.http.oip.tensors import DATATYPES, Datatype
from clover.types import TensorSpec

RANK = 8
"""Most axes of a tensor, the batch axis included."""

_SHOWN = 40
"""Characters of a client's text that an error repeats at most."""
_NAMED = 8
"""Declared names that an error lists at most."""


class DeclaredInput:
    """An input that the family declares, compiled for checking tensors against it."""

    __slots__ = ("datatype", "index", "is_bytes", "is_numeric", "row_shape", "spec", "variable")

    def __init__(self, index: int, spec: TensorSpec) -> None:
        self.index = index
        self.spec = spec
        self.datatype: Datatype = DATATYPES[spec.datatype]
        self.is_bytes = spec.datatype == "BYTES"
        self.is_numeric = spec.datatype not in ("BYTES", "BOOL")
        """Whether any bytes of the right number are elements of it."""
        self.row_shape = list(spec.shape)
        self.variable = spec.variable

    def check_shape(self, shape: Any, most_rows: int, body_bytes: int) -> list[int]:
        """Return the shape of a request's tensor if this input takes it; raise BadRequest or TooLarge otherwise.

        A request has at most `most_rows` rows, and no more rows than bytes.  A row with elements takes a byte or more
        in any case; rows without any would cost the client nothing and the server its queue.
        """
        if type(shape) is not list:
            raise BadRequest("its shape is missing or not an array")
        if len(shape) > RANK:
            raise BadRequest(f"its shape has {len(shape)} axes; a tensor has at most {RANK}")
        for axis in shape:  # before any comparison: 4.0 and true equal 4 and 1
            if type(axis) is not int or axis < 0:
                raise BadRequest(
                    f"its shape holds {quote_input(axis)}; an axis is a whole number from 0 on, such as 3 (not 3.0)"
                )
        if len(shape) != len(self.row_shape) + 1 or not self._within(shape):
            bound = f", of at most {list(self.spec.bound)} a row" if self.variable else ""
            raise BadRequest(
                f"its shape is {shape}; the model takes {[-1, *self.row_shape]}{bound} (the first axis is the batch)"
            )
        rows = shape[0]
        if rows < 1:
            raise BadRequest("it has no rows; a request carries at least one")
        if rows > body_bytes:
            raise BadRequest(
                f"it has {rows} rows in a body of {body_bytes} bytes; a request carries at most {most_rows}, and no "
                "more than its body has bytes"
            )
        if rows > most_rows:
            raise TooLarge(f"it has {rows} rows; a request carries at most {most_rows} rows")
        return list(shape)

    def _within(self, shape: list[int]) -> bool:
        """Return whether the axes of a row are as declared or, if they vary, within their bounds."""
        if not self.variable:
            return shape[1:] == self.row_shape
        for axis, declared, bound in zip(shape[1:], self.row_shape, self.spec.bound, strict=True):
            if (declared >= 0 and axis != declared) or (declared < 0 <= bound < axis):
                return False
        return True


def of_input(entry: DeclaredInput, error: RequestError) -> RequestError:
    """Return `error` with the name of the input that it is about."""
    return type(error)(f"input {entry.spec.name!r}: {error.message}")


def quote_input(value: Any) -> str:
    """Return what a client sent for an error's text: quoted, of bounded length, nothing in it unprintable."""
    if type(value) is str:
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if type(value) is list:
        return "an array"
    if type(value) is dict:
        return "an object"
    text: str = orjson.dumps(value).decode()  # a number, true, false or null
    return text


def names_of(names: Iterable[str]) -> str:
    """Return declared names for an error's text."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:_NAMED]) + (", ..." if len(quoted) > _NAMED else "")
