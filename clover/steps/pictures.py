"""What a JPEG or PNG file says of itself, read and bounded before a decoder works on it.

A file decides how much work its decoder has: it may have empty scans, millions of segments, or profiles and texts that
unpack to a thousand times their size.  So the file is walked first, and refused if it breaks one of the bounds below.
The decoder gets only what it needs for the pixels: no profile, text, comment, thumbnail or animation.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from clover.steps.step import UNBOUNDED, BadRow

NOT_WHOLE = "the bytes are not a whole JPEG or PNG image"

MOST_SCANS = 32
"""Of a JPEG: an empty scan of 70 bytes costs as much as a pass over all pixels.  Encoders write up to 18."""
MOST_SEGMENTS = 4096
"""Of a JPEG.  A profile or a text of megabytes takes some hundreds of them."""
MOST_CHUNKS = 16_384
"""Of a PNG.  Encoders write 8 KiB or more in each."""
BYTES_A_PIXEL = 8
"""Memory for decoding, at most, per pixel that is allowed: a decoded picture of four bytes a pixel and its conversion,
or that and the coefficients of a progressive JPEG whose colours have half the resolution."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT")

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither fill bytes, nor a stuffed one, nor a restart
_HUFFMAN = (0xC0, 0xC1, 0xC2)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # tables, reserved, tables of arithmetic coding
_SOI, _EOI, _SOS, _EXIF, _TEM = 0xD8, 0xD9, 0xDA, 0xE1, 0x01
_START = bytes((0xFF, _SOI))
_TABLES = (0xC4, 0xDB, 0xDD)
_JPEG_KEPT = frozenset({*_HUFFMAN, *_TABLES, _SOS, _EOI, 0xE0, 0xEE})  # JFIF and Adobe say what colours mean
_ORIENTATION = 0x0112
_HEAD_SEGMENTS, _HEAD_GAP = 64, 256


class Picture(NamedTuple):
    """A picture that keeps the bounds: its size in pixels, what its EXIF orientation is (1: upright), and a file of
    what a decoder needs."""

    width: int
    height: int
    orientation: int
    file: bytes


def read(data: bytes, max_pixels: int) -> Picture:
    """Return the picture in a JPEG or PNG file.  Raises BadRow, which says the limit that the file breaks."""
    return _png(data, max_pixels) if data.startswith(_PNG) else _jpeg(data, max_pixels)


def pixels(data: memoryview, most: int) -> int:
    """Return how many pixels a JPEG or PNG file says that it has, `most` at most; 0 if it is neither.

    It looks at the first segments only, and takes tens of microseconds at most.  A JPEG that does not say it there may
    have `most`."""
    if data[: len(_PNG)] == _PNG:
        width, height = struct.unpack_from(">II", data, 16) if len(data) >= 24 else (0, 0)
        return int(min(width * height, most))
    if data[:2] != _START:
        return 0
    try:
        for kind, start, _ in _segments(data, _HEAD_SEGMENTS, _HEAD_GAP):
            if kind in _FRAMES:
                height, width = struct.unpack_from(">HH", data, start + 5)
                return int(min(width * height, most))
    except (BadRow, struct.error):
        pass
    return most


def _png(data: bytes, max_pixels: int) -> Picture:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise BadRow(NOT_WHOLE)
    width, height = struct.unpack_from(">II", data, 16)
    _check_size(width, height, max_pixels)
    kept, orientation, at, chunks = [_PNG], 1, len(_PNG), 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise BadRow(f"the PNG has more than the {MOST_CHUNKS} chunks allowed")
        if name == b"IEND":
            break
        if name in _PNG_KEPT:
            kept.append(data[at : at + size + 12])
        elif name == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + size])
        at += size + 12
    kept.append(b"\0\0\0\0IEND\xae\x42\x60\x82")
    return Picture(width, height, orientation, b"".join(kept))


def _jpeg(data: bytes, max_pixels: int) -> Picture:
    if not data.startswith(_START):
        raise BadRow(NOT_WHOLE)
    kept, frame, exif, scans = [_START], b"", b"", 0
    for kind, start, end in _segments(data):
        if kind in _FRAMES:
            if kind not in _HUFFMAN:
                raise BadRow(f"the JPEG has a frame of kind {kind - 0xC0}, and one of kind 0, 1 or 2 is taken")
            if frame:
                raise BadRow("the JPEG has a second frame")
            frame = data[start + 4 : end]
        scans += kind == _SOS
        if kind in _JPEG_KEPT:
            kept.append(data[start:end])
        elif kind == _EXIF and not exif and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start + 10 : end]
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise BadRow(NOT_WHOLE)
    height, width = struct.unpack_from(">HH", frame, 1)
    _check_size(width, height, max_pixels)
    if scans > MOST_SCANS:
        raise BadRow(f"the JPEG has {scans} scans, more than the {MOST_SCANS} allowed")
    parts = [(one >> 4, one & 15) for one in frame[7 : 6 + 3 * frame[5] : 3]]
    if not parts or min(map(min, parts)) < 1:
        raise BadRow(NOT_WHOLE)
    memory = width * height * (4 if len(parts) > 1 else 1)
    if scans > 1:  # all coefficients are held until the last scan was read, two bytes each
        whole = max(across for across, _ in parts) * max(down for _, down in parts)
        memory += 2 * width * height * sum(across * down for across, down in parts) // whole
    if memory > BYTES_A_PIXEL * max_pixels:
        most = BYTES_A_PIXEL * max_pixels
        raise BadRow(f"the JPEG of {scans} scans takes {memory} bytes to decode, more than the {most} allowed")
    return Picture(width, height, _orientation(exif), b"".join(kept))


def _segments(
    data: bytes | memoryview, most: int = MOST_SEGMENTS, gap: int = sys.maxsize
) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of a JPEG, up to its end, with where it begins and ends; that of a scan ends
    with its data.  It ends where no marker follows within `gap` bytes.  Raises BadRow if there are more than `most`,
    or one is not whole."""
    count, marker = 0, _MARKER.search(data, 2, min(2 + gap, len(data)))
    while marker is not None:
        start, kind = marker.start(), data[marker.start() + 1]
        if kind == _EOI:
            yield kind, start, start + 2
            return
        count += 1
        if count > most:
            raise BadRow(f"the JPEG has more than the {most} segments allowed")
        if kind in (_SOI, _TEM):  # these have no length
            raise BadRow(NOT_WHOLE)
        size = int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + size
        if size < 2 or end > len(data):
            raise BadRow(NOT_WHOLE)
        marker = _MARKER.search(data, end, min(end + gap, len(data)))
        if kind == _SOS:
            end = len(data) if marker is None else marker.start()
        yield kind, start, end


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise BadRow(NOT_WHOLE)
    if max(width, height) > UNBOUNDED:
        raise BadRow(f"the image has {width} x {height} pixels, more than the {UNBOUNDED} allowed on one side")
    if width * height > max_pixels:
        raise BadRow(f"the image has {width} x {height} pixels, more than the {max_pixels} allowed")


def _orientation(exif: bytes) -> int:
    """Return the orientation (1 to 8) that the first directory of EXIF data says; 1 if it says none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    entries = exif[at + 2 : at + 2 + 12 * count]
    for tag, value in struct.iter_unpack(f"{order}H6xH2x", entries[: len(entries) // 12 * 12]):
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1
