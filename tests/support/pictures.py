"""Pictures that cost a decoder more than they should, by what they are about."""

from __future__ import annotations

import struct
import zlib

_QUANTA = b"\0" + bytes([1]) * 64


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, bits: int = 8, kind: int = 0, *, extra: bytes = b"", after: bytes = b"", empty: int = 0
) -> bytes:
    """Return a black PNG of so many bits a channel and colour type `kind`, with chunks before and after its pixels and
    `empty` chunks of no pixels."""
    row = bytes(1 + (width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind] + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT") * empty + chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + after + chunk(b"IEND")


def segment(marker: int, data: bytes = b"") -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def scan(parts: int, first: int, last: int, bits: int, data: bytes) -> bytes:
    """Return a scan of the first `parts` components: of their coefficients `first` to `last`, with `data`."""
    names = b"".join(bytes([part + 1, 0]) for part in range(parts))
    return segment(0xDA, bytes([parts]) + names + bytes([first, last, bits])) + data


def jpeg(width: int, height: int, scans: bytes, *, kind: int = 0xC0, parts: int = 1, extra: bytes = b"") -> bytes:
    """Return a JPEG of `parts` components with these scans: its codes are "0" for a difference of none, or for a run
    of up to 32,767 empty blocks, whose length follows in 14 bits, and "10" for the end of a block."""
    sides = struct.pack(">BHHB", 8, height, width, parts)
    frame = sides + b"".join(bytes([part + 1, 0x11, 0]) for part in range(parts))
    codes = segment(0xC4, b"\0" + bytes([1]) + bytes(15) + b"\0")
    codes += segment(0xC4, b"\x10" + bytes([1, 1]) + bytes(14) + b"\xe0\0")
    return b"\xff\xd8" + extra + segment(0xDB, _QUANTA) + segment(kind, frame) + codes + scans + b"\xff\xd9"


def empty_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG of one component with this many scans, all but the first of which hold nothing."""
    runs = -(-(-(-width // 8) * -(-height // 8)) // 32767)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return jpeg(width, height, scan(1, 0, 0, 0, b"") + scan(1, 1, 63, 0x10, data) * (scans - 1), kind=0xC2)
