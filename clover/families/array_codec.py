"""Arrays between the server and a process that runs a family's code: bytes in, checked arrays out, nothing pickled.

An array is a record of its dtype, its shape and its bytes.  Arrays of objects hold text or bytes, one after the other.
The decoder does not trust the encoder: a malformed record raises ValueError.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.types import Record

_PLAIN = re.compile(r"[<>|=]?(b1|[iuf][1248]|f16|S\d{1,6}|U\d{1,6})")
"""Dtypes of fixed size that hold no references."""
_MOST_AXES = 32


class PackedArray(Record, frozen=True, kw_only=True):
    """An array as a message: `data` has its elements in C order, `items` those of an array of objects, which are `text`
    in UTF-8 or bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""
    items: tuple[bytes, ...] = ()
    text: bool = False


def pack(array: NDArray[Any]) -> PackedArray:
    """Return an array as a message; raises TypeError if it holds what is neither a number nor text nor bytes."""
    if array.dtype != np.dtype(object):
        if not _PLAIN.fullmatch(array.dtype.str):
            raise TypeError(f"arrays of {array.dtype} are not passed on")
        return PackedArray(dtype=array.dtype.str, shape=array.shape, data=array.tobytes())
    items = array.reshape(-1).tolist()
    kinds = {type(item) for item in items}
    if not (kinds <= {bytes} or kinds <= {str}):
        what = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"arrays of {what} are not passed on: of objects, only text, or only bytes")
    text = kinds == {str}
    encoded = [item.encode("utf-8", "surrogatepass") for item in items] if text else items
    return PackedArray(dtype="O", shape=array.shape, items=tuple(encoded), text=text)


def unpack(packed: PackedArray) -> NDArray[Any]:
    """Return the array of a message, which shares its bytes; raises ValueError if it is none."""
    shape = packed.shape
    if len(shape) > _MOST_AXES or any(axis < 0 for axis in shape):
        raise ValueError("an array has an impossible shape")
    count = math.prod(shape)
    if packed.dtype == "O":
        if len(packed.items) != count:
            raise ValueError("an array has not as many items as its shape says")
        array: NDArray[Any] = np.empty(count, dtype=object)
        array[:] = [item.decode("utf-8", "surrogatepass") for item in packed.items] if packed.text else packed.items
        return array.reshape(shape)
    if not _PLAIN.fullmatch(packed.dtype):
        raise ValueError("an array has an impossible dtype")
    dtype = np.dtype(packed.dtype)
    if not dtype.itemsize or len(packed.data) != count * dtype.itemsize:
        raise ValueError("an array has not as many bytes as its shape says")
    return np.frombuffer(packed.data, dtype).reshape(shape)
