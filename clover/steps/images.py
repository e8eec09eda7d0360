"""Steps on images: from JPEG or PNG bytes to the tensor that a vision model takes.

The same calls as torchvision's transforms on PIL images, so the results are the same to the last bit, up to rounding
in `normalise`.  The exception is a JPEG of at least eight times the size that it is resized to, which is decoded
smaller: some of its pixels are a few levels off.
"""

from __future__ import annotations

import io
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps import pictures
from clover.steps.step import UNBOUNDED, At, BadRow, Column, DataStep, fix_shape, read_tensor, read_text, text_of
from clover.types import TensorSpec

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("JPEG", "PNG")
_SAMPLE_SIDE = 320
_SECONDS, _SECONDS_A_PIXEL = 1.0, 0.25e-6
"""CPU time after which decoding ends, some ten times what the costliest pictures that are taken need."""
_BLOCK = 1 << 14  # bytes that a decoder gets at once; in between its time is looked at
_DRAFT = 4
"""A JPEG is decoded at half, a quarter or an eighth of its size if it stays so many times as large as it is resized
to."""
_MEGAPIXEL = 1 << 20
_MOST_ENLARGED = 1 << 24
"""Pixels that an image may be enlarged to: a file of 74 bytes may be a line of 1 x 1000 pixels, whose sides `resize`
makes hundreds of times as long."""


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ConfigError("steps on images need pillow: pip install pillow") from error
    return Image


class _TimedFile(io.BytesIO):
    """A file for a decoder: reading raises BadRow once this thread has computed for `seconds`."""

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO.read`."""
        if time.thread_time() > self._end:
            raise BadRow(f"decoding the image takes more than the {self._seconds:.3g} s of CPU time allowed")
        return super().read(size)


def _load(picture: pictures.Picture, least: tuple[int, int]) -> Image.Image:
    """Return a decoded picture; a JPEG may come at a part of its size, not below `least` (0, 0: at its size).  Raises
    what the decoder raises."""
    from PIL import Image

    seconds = _SECONDS + _SECONDS_A_PIXEL * picture.width * picture.height
    with Image.open(_TimedFile(picture.file, seconds), formats=_FORMATS) as opened:
        if opened.size != (picture.width, picture.height):
            raise BadRow(pictures.NOT_WHOLE)
        if min(least) > 0:
            opened.draft(None, least)
        opened.decodermaxblock = _BLOCK
        opened.load()
        return opened


def _turns() -> dict[int, Any]:
    """Return by EXIF orientation how an image is turned or mirrored to stand upright."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


class DecodeImage(DataStep, frozen=True, kw_only=True):
    """JPEG or PNG bytes to UINT8 [height, width, channels].

    An image of more than `max_pixels`, or one that breaks another bound of `clover.steps.pictures`, is refused before
    it is unpacked.  `upright` turns it as its EXIF orientation says, as viewers do.  Beside the image it writes its
    height and width (INT32 [2]) as "NAME_size".  If a `resize` step follows, the image is written in that size.
    """

    mode: Literal["RGB", "L"] = "RGB"
    max_pixels: int = 40_000_000
    upright: bool = True
    by_row: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        _pillow()
        read_text(tensors, at.source)
        if self.max_pixels < 1:
            raise ConfigError("max_pixels is at least 1")
        channels = 3 if self.mode == "RGB" else 1
        tensors[at.target] = fix_shape(at.target, "UINT8", (-1, -1, channels), (UNBOUNDED, UNBOUNDED, channels))
        size = f"{at.target}_size"
        tensors[size] = fix_shape(size, "INT32", (2,))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        picture = pictures.read(text_of(values[at.source]), self.max_pixels)
        turn = picture.orientation if self.upright else 1
        sides = (picture.width, picture.height) if turn >= 5 else (picture.height, picture.width)
        resize = at.then if isinstance(at.then, Resize) else None
        image = self._decode(picture, turn, resize.checked_size(*sides) if resize is not None else None)
        if resize is not None:
            image = resize.resized(image, sides)
        array = np.asarray(image)
        values[at.target] = array[:, :, None] if array.ndim == 2 else array
        values[f"{at.target}_size"] = np.array(sides, np.int32)

    def weight(self, data: memoryview) -> int:
        """See `DataStep.weight`: a row more for each million of pixels."""
        return 1 + pictures.pixels(data, self.max_pixels) // _MEGAPIXEL

    def _decode(self, picture: pictures.Picture, turn: int, wanted: tuple[int, int] | None) -> Image.Image:
        """Return the pixels, turned by the EXIF orientation `turn`.  A JPEG that is to have the `wanted` height and
        width may come smaller than it is."""
        from PIL import Image

        across, down = (0, 0) if wanted is None else wanted if turn >= 5 else wanted[::-1]
        try:
            image = _load(picture, (_DRAFT * across, _DRAFT * down))
            if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode != self.mode:
                image = image.convert(self.mode)
            return image.transpose(_turns()[turn]) if turn > 1 else image
        except (BadRow, MemoryError):
            raise  # without memory, the picture may be a good one
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadRow(f"the image has more than the {self.max_pixels} pixels allowed") from None
        except Exception:  # a decoder meets arbitrary bytes, and raises whatever it stumbles over
            raise BadRow(pictures.NOT_WHOLE) from None

    def sample(self, generator: np.random.Generator) -> Any:
        """Return the JPEG of a smooth, coloured picture."""
        from PIL import Image

        rough = generator.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(rough).resize((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.BICUBIC)
        made = io.BytesIO()
        image.save(made, "JPEG", quality=90)
        return made.getvalue()


class Resize(DataStep, frozen=True, kw_only=True):
    """UINT8 [h, w, c] to another size, antialiased: `size` as a number is that of the shorter side, as two are height
    and width; `height` keeps the proportions up to `max_width`."""

    size: int | tuple[int, int] | None = None
    height: int = 0
    max_width: int = 0
    method: Literal["bilinear", "bicubic"] = "bilinear"
    by_row: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        _pillow()
        given = _image(tensors, at)
        if (self.size is None) == (self.height == 0):
            raise ConfigError("one of size and height is needed")
        if min(self.height or 1, self.max_width or 1, *_sides(self.size)) < 1:
            raise ConfigError("sizes are at least 1")
        channels = given.shape[2]
        if self.height:
            most = self.max_width or UNBOUNDED
            tensors[at.target] = fix_shape(
                at.target, "UINT8", (self.height, -1, channels), (self.height, most, channels)
            )
        elif isinstance(self.size, int) and given.shape[0] > 0 and given.shape[1] > 0:
            tensors[at.target] = fix_shape(at.target, "UINT8", (*self._size(*given.shape[:2]), channels))
        elif isinstance(self.size, int):
            tensors[at.target] = fix_shape(at.target, "UINT8", (-1, -1, channels), (UNBOUNDED, UNBOUNDED, channels))
        else:
            assert self.size is not None
            tensors[at.target] = fix_shape(at.target, "UINT8", (*self.size, channels))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        from PIL import Image

        given: NDArray[Any] = values[at.source]
        if self.checked_size(*given.shape[:2]) == given.shape[:2]:
            values[at.target] = given
            return
        plain = given[:, :, 0] if given.shape[2] == 1 else given
        made = np.asarray(self.resized(Image.fromarray(plain), given.shape[:2]))
        values[at.target] = made[:, :, None] if made.ndim == 2 else made

    def checked_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width gets.  Raises BadRow if it is too long
        and thin."""
        high, wide = self._size(height, width)
        declared = isinstance(self.size, tuple)  # as large as the family says, whatever the image
        most = high * wide if declared else max(_MOST_ENLARGED, height * width)
        if max(high, wide) > UNBOUNDED or high * wide > most:
            raise BadRow(f"the image would be resized to {high} x {wide} pixels: it is too long and thin")
        return high, wide

    def resized(self, image: Image.Image, sides: tuple[int, int]) -> Image.Image:
        """Return an image of the height and width `sides`, or a draft of it, in the size that it gets."""
        from PIL import Image

        height, width = self.checked_size(*sides)
        how = Image.Resampling.BICUBIC if self.method == "bicubic" else Image.Resampling.BILINEAR
        return image if image.size == (width, height) else image.resize((width, height), how)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing; the longer side is rounded down, as torchvision does."""
        if self.height:
            wide = max(1, math.ceil(self.height * width / height))
            return self.height, min(wide, self.max_width) if self.max_width else wide
        if not isinstance(self.size, int):
            assert self.size is not None
            return self.size
        if height < width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


class Crop(DataStep, frozen=True, kw_only=True):
    """The middle of an image [h, w, c], `size` pixels high and wide (or as two numbers); black where the image is
    smaller."""

    size: int | tuple[int, int]
    by_row: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = _image(tensors, at)
        if min(_sides(self.size)) < 1:
            raise ConfigError("sizes are at least 1")
        tensors[at.target] = fix_shape(at.target, "UINT8", (*self._size(), given.shape[2]))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        given: NDArray[Any] = values[at.source]
        high, wide = self._size()
        short, narrow = max(0, high - given.shape[0]), max(0, wide - given.shape[1])
        if short or narrow:
            edges = ((short // 2, (short + 1) // 2), (narrow // 2, (narrow + 1) // 2), (0, 0))
            given = np.pad(given, edges)
        top, left = round((given.shape[0] - high) / 2.0), round((given.shape[1] - wide) / 2.0)
        cut = given[top : top + high, left : left + wide]
        # A view would keep the whole image in memory until all rows of the batch are done.
        values[at.target] = cut if cut.shape == given.shape else cut.copy()

    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Normalise(DataStep, frozen=True, kw_only=True):
    """UINT8 [h, w, c] to FP32: divided by 255, less `mean`, divided by `std` (one number a channel, or none), and
    channels first unless `channels` says "last"."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: Literal["first", "last"] = "first"
    arithmetic: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = _image(tensors, at)
        for values, name in ((self.mean, "mean"), (self.std, "std")):
            if values and len(values) not in (1, given.shape[2]):
                raise ConfigError(f"{name} has {len(values)} numbers for {given.shape[2]} channels")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std, default=1) <= 0:
            raise ConfigError("mean and std are finite, and std is positive")

        def ordered(axes: tuple[int, ...]) -> tuple[int, ...]:
            return (axes[2], *axes[:2]) if self.channels == "first" else axes

        tensors[at.target] = fix_shape(at.target, "FP32", ordered(given.shape), ordered(given.bound))

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        given = columns[at.source]
        if isinstance(given, np.ndarray):
            columns[at.target] = self._normalise(given)
        elif len({row.shape for row in given}) == 1:
            columns[at.target] = self._normalise(np.stack(given))
        else:
            columns[at.target] = [self._normalise(row[None])[0] for row in given]

    def _normalise(self, images: NDArray[Any]) -> NDArray[np.float32]:
        ordered = images.transpose(0, 3, 1, 2) if self.channels == "first" else images
        made = ordered.astype(np.float32, order="C")
        shape = (-1, 1, 1) if self.channels == "first" else (-1,)
        made /= np.float32(255)
        if self.mean:
            made -= np.array(self.mean, np.float32).reshape(shape)
        if self.std:
            made /= np.array(self.std, np.float32).reshape(shape)
        return made


def _image(tensors: dict[str, TensorSpec], at: At) -> TensorSpec:
    """Return the image that a step reads.  Raises ConfigError if it is none."""
    given = read_tensor(tensors, at.source, ("UINT8",))
    if len(given.shape) != 3 or given.shape[2] not in (1, 3):
        raise ConfigError(f"it takes an image [height, width, 1 or 3], and {at.source!r} is {list(given.shape)}")
    return given


def _sides(size: int | tuple[int, int] | None) -> tuple[int, ...]:
    return (1,) if size is None else (size,) if isinstance(size, int) else size
