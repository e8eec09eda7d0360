"""Steps on sounds: from a WAV file's bytes to samples of one rate, of fixed length or in frames."""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps.step import At, BadRow, Column, DataStep, fix_shape, read_tensor, read_text, text_of
from clover.types import TensorSpec

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_MOST_CHANNELS = 64
_STREAMED = 0x7FFF_0000
"""Bytes of samples that a WAV file says it has, at least, if it was written before its length was known."""

_MOST_RATIO = 64
"""How many times as fast or as slow as wanted a sound may be sampled, to be resampled."""

_TAPS = 32
"""Zero crossings of the filter on either side of a sample that is resampled."""
_PHASES = 1024
"""Filters that are made, at most; a sample that lies between two of them is interpolated.  To make one costs as much as
to use it ten times."""
_MOST_PRODUCTS = 1 << 29
"""Samples times taps that a sound may need to be resampled, three seconds of CPU time: a minute of 96 kHz to 16 kHz
needs 0.7 of it."""
_PRODUCTS_A_ROW = 1 << 24
_MOST_CHUNKS = 1024
"""Of a WAV file."""


class DecodeWav(DataStep, frozen=True, kw_only=True):
    """WAV bytes (PCM of 8, 16, 24 or 32 bits, or float of 32 or 64) to FP32 [samples] at `rate` hertz, within -1..1.

    Channels are averaged.  Another rate is converted by a windowed sinc filter if `resample` says so (the default),
    else refused.  A sound longer than `max_seconds` is refused.
    """

    rate: int
    resample: bool = True
    max_seconds: float = 60.0
    by_row: ClassVar[bool] = True

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        read_text(tensors, at.source)
        if not 1 <= self.rate <= 768_000 or not 0 < self.max_seconds <= 3600:
            raise ConfigError("rate is 1 to 768000 hertz, and max_seconds up to 3600")
        most = math.ceil(self.max_seconds * self.rate)
        tensors[at.target] = fix_shape(at.target, "FP32", (-1,), (most,))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        sound = wav_of(text_of(values[at.source]))
        self._check(sound)
        samples = _samples(sound)
        if sound.rate != self.rate:
            samples = resample(samples, sound.rate, self.rate)[: math.ceil(self.max_seconds * self.rate)]
        values[at.target] = samples

    def weight(self, data: memoryview) -> int:
        """See `DataStep.weight`: a row more for as many products as take the time of a million pixels."""
        try:
            return 1 + self._check(wav_of(data)) // _PRODUCTS_A_ROW
        except BadRow:
            return 1

    def _check(self, sound: Wav) -> int:
        """Return how many products a sound takes to be resampled.  Raises BadRow if it is too long, or they are too
        many."""
        rate = sound.rate
        if sound.length > self.max_seconds * rate:
            raise BadRow(f"the sound is longer than the {self.max_seconds:g} s allowed")
        if rate == self.rate:
            return 0
        if not self.resample or not 1 / _MOST_RATIO <= rate / self.rate <= _MOST_RATIO:
            raise BadRow(f"the sound has {rate} samples a second, and {self.rate} are taken")
        products = _products(sound.length, rate, self.rate)
        if products > _MOST_PRODUCTS:
            raise BadRow(
                f"a sound of {sound.length} samples at {rate} hertz takes {products} products to be resampled to "
                f"{self.rate}, more than the {_MOST_PRODUCTS} allowed"
            )
        return products

    def sample(self, generator: np.random.Generator) -> Any:
        """Return a second of a tone, in noise, as WAV of 16 bits."""
        time = np.arange(int(min(1.0, self.max_seconds) * self.rate)) / self.rate
        tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 400) * time)
        return encode_wav(tone + 0.01 * generator.standard_normal(len(time)), self.rate)


class Wav(NamedTuple):
    """What the head of a WAV file says, and its samples as they are held: `kind` and `bits` of one, `channels` side by
    side, `length` times."""

    kind: int
    bits: int
    channels: int
    rate: int
    length: int
    body: memoryview


def decode_wav(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Return the samples (mean of the channels, -1..1) and the rate of a WAV file.  Raises BadRow."""
    sound = wav_of(data)
    return _samples(sound), sound.rate


def wav_of(data: bytes | memoryview) -> Wav:
    """Return what a WAV file says of its samples, none of which are looked at.  Raises BadRow."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadRow("the bytes are not a WAV file")
    view, form, at = memoryview(data), memoryview(b""), 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            raise BadRow("the WAV file has no samples")
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = view[at + 8 : at + 8 + size]
        if name == b"fmt ":
            form = body
        elif name == b"data":
            if 0 < len(body) < size < _STREAMED:
                raise BadRow(f"the WAV file says that it has {size} bytes of samples, and {len(body)} are there")
            return _check_length(form, body)
        at += 8 + size + size % 2
    raise BadRow(f"the WAV file has more than the {_MOST_CHUNKS} chunks allowed before its samples")


def _check_length(form: memoryview, body: memoryview) -> Wav:
    """Return how the chunk "fmt " of a WAV file says that the samples in `body` are held.  Raises BadRow."""
    if len(form) < 16:
        raise BadRow("the WAV file does not say how its samples are held")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if kind == _EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack_from("<H", form, 24)[0]
    if not 1 <= channels <= _MOST_CHANNELS or not 1 <= rate <= 768_000:
        raise BadRow(f"the WAV file says that it has {channels} channels and {rate} samples a second")
    if (kind, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)):
        raise BadRow(f"samples of kind {kind} and {bits} bits are not known: PCM of 8 to 32 bits, or float, are")
    count = len(body) // (bits // 8 * channels)
    if not count:
        raise BadRow("the WAV file has no samples")
    return Wav(kind, bits, channels, rate, count, body[: count * (bits // 8) * channels])


def _samples(sound: Wav) -> NDArray[np.float32]:
    """Return the samples of a sound: the mean of its channels, -1..1.  Raises BadRow."""
    kind, bits, channels, _, _, body = sound
    if kind == _FLOAT:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            plain = np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
        if not np.isfinite(plain).all():
            raise BadRow("the WAV file has samples that are no finite numbers")
        plain = np.clip(plain, -1.0, 1.0)
    elif bits == 8:
        plain = (np.frombuffer(body, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    elif bits == 24:
        parts = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8
        plain = whole.astype(np.float32) / np.float32(1 << 23)
    else:
        plain = (np.frombuffer(body, f"<i{bits // 8}") / (1 << (bits - 1))).astype(np.float32)
    return plain if channels == 1 else plain.reshape(-1, channels).mean(axis=1, dtype=np.float64).astype(np.float32)


def encode_wav(samples: NDArray[Any], rate: int) -> bytes:
    """Return samples (-1..1) as a WAV file of one channel and 16 bits."""
    body = np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(body), b"WAVE", b"fmt ", 16, _PCM, 1, rate, 2 * rate, 2,
                       16, b"data", len(body))  # fmt: skip
    return head + body


def _reach(rate: int, wanted: int) -> float:
    """Return how many given samples the filter reaches on either side of one that is made."""
    return _TAPS / min(1.0, wanted / rate)


def _products(count: int, rate: int, wanted: int) -> int:
    """Return how many products it takes to resample `count` samples: those that are made, times the filter's taps."""
    return max(1, round(count * wanted / rate)) * (2 * math.ceil(_reach(rate, wanted)) + 1)


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples at another rate, by a Hann-windowed sinc filter that cuts at the lower of both half rates."""
    count = max(1, round(len(samples) * wanted / rate))
    part = min(1.0, wanted / rate)
    reach = _reach(rate, wanted)
    half = math.ceil(reach)
    made = np.empty(count, np.float32)
    padded = np.pad(samples.astype(np.float64), half + 1)
    offsets = np.arange(-half, half + 1)
    common = math.gcd(rate, wanted)
    step, phases = rate // common, wanted // common

    def filters(behind: NDArray[Any]) -> NDArray[np.float64]:
        """Return the filters of samples by how far each is `behind` the given sample before it: 0 to 1."""
        distance = behind[:, None] - offsets
        window = np.where(np.abs(distance) < reach, 0.5 + 0.5 * np.cos(np.pi * distance / reach), 0.0)
        samples_made: NDArray[np.float64] = window * np.sinc(distance * part) * part
        return samples_made

    piece = max(1, (1 << 20) // len(offsets))  # each sample needs many taps
    made_by = min(phases, _PHASES)
    grid = np.arange(made_by + 1) / made_by if count > made_by else np.empty(0)
    known = [filters(grid[at : at + piece]) for at in range(0, len(grid), piece)]
    bank = np.concatenate(known) if known else None
    for first in range(0, count, piece):
        numbers = np.arange(first, min(first + piece, count))
        taps = padded[(numbers * step // phases)[:, None] + offsets + half + 1]
        place = numbers * step % phases
        if bank is None:
            made[first : first + len(numbers)] = np.einsum("kt,kt->k", taps, filters(place / phases))
            continue
        place, beyond = np.divmod(place * made_by, phases)
        samples_made = np.einsum("kt,kt->k", taps, bank[place])
        if phases > made_by:
            samples_made += (np.einsum("kt,kt->k", taps, bank[place + 1]) - samples_made) * (beyond / phases)
        made[first : first + len(numbers)] = samples_made
    return made


class Pad(DataStep, frozen=True, kw_only=True):
    """Rows to one length on `axis`: to `size`, what is longer cut, or to the longest of the batch, rounded up to a
    `multiple`.  `value` fills, at the end."""

    size: int = 0
    axis: int = 0
    multiple: int = 1
    value: float = 0.0

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source)
        if given.datatype == "BYTES" or not 0 <= self.axis < len(given.shape) or self.size < 0 or self.multiple < 1:
            raise ConfigError(f"size, axis and multiple do not fit {at.source!r}, which is {list(given.shape)}")
        shape, bound = list(given.shape), list(given.bound)
        if self.size:
            shape[self.axis] = bound[self.axis] = self.size
        elif given.shape[self.axis] < 0:
            bound[self.axis] = -(-bound[self.axis] // self.multiple) * self.multiple
        tensors[at.target] = fix_shape(at.target, given.datatype, tuple(shape), tuple(bound))

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        rows = list(columns[at.source])
        longest = max(row.shape[self.axis] for row in rows)
        size = self.size or -(-longest // self.multiple) * self.multiple
        columns[at.target] = [self._to(np.asarray(row), size) for row in rows]

    def _to(self, row: NDArray[Any], size: int) -> NDArray[Any]:
        kept = row[(slice(None),) * self.axis + (slice(size),)]
        missing = [(0, size - kept.shape[self.axis] if axis == self.axis else 0) for axis in range(row.ndim)]
        return np.pad(kept, missing, constant_values=self.value)


class Frame(DataStep, frozen=True, kw_only=True):
    """Samples [n] to frames [m, size], one every `hop` samples; a rest that fills no frame is left out, and a row
    shorter than one frame is filled with zeros."""

    size: int
    hop: int

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        given = read_tensor(tensors, at.source)
        if given.datatype == "BYTES" or len(given.shape) != 1 or self.size < 1 or self.hop < 1:
            raise ConfigError(f"it takes samples [n], with a size and hop of at least 1, not {list(given.shape)}")
        length = given.shape[0]
        shape = (self._frames(length) if length > 0 else -1, self.size)
        tensors[at.target] = fix_shape(at.target, given.datatype, shape, (self._frames(given.bound[0]), self.size))

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`."""
        columns[at.target] = [self._frame(np.asarray(row)) for row in columns[at.source]]

    def _frames(self, length: int) -> int:
        return 1 + max(0, length - self.size) // self.hop

    def _frame(self, samples: NDArray[Any]) -> NDArray[Any]:
        if len(samples) < self.size:
            samples = np.pad(samples, (0, self.size - len(samples)))
        return np.lib.stride_tricks.sliding_window_view(samples, self.size)[:: self.hop].copy()
