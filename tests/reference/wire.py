"""Sending, copying and putting together, in plain Python."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from decimal import Context, Decimal


def send(fd: int, data: bytes) -> int:
    """Send `data` and return how many bytes the socket `fd` took now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as taken:
            return taken.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return 0


def part(data: bytes, start: int, stop: int) -> bytes:
    """Return `data[start:stop]`, all of it."""
    if not 0 <= start <= stop <= len(data):
        raise IndexError(f"{start} to {stop} of {len(data)} bytes")
    return data[start:stop]


def head_end(data: bytes, start: int) -> int:
    """Return where the first CRLF CRLF from `start` on ends."""
    if not 0 <= start <= len(data):
        raise IndexError(f"{start} of {len(data)} bytes")
    found = data.find(b"\r\n\r\n", start)
    return found + 4 if found >= 0 else -1


def varying(raw: bytes) -> tuple[bytes, int, int, bytes, bytes, bytes, bytes] | None:
    """Return a head without the values that vary, and these."""
    names = (b"content-length", b"inference-header-content-length", b"x-request-id", b"traceparent", b"tracestate")
    kinds = (rb"[0-9]{1,18}", rb"[0-9]{1,18}", rb"[!-~]{1,128}", rb"[ -~]+", rb"[ -~]+", rb"[ -~]+")
    found: list[bytes] = []
    rest = raw
    for name, kind in zip((*names, b"baggage"), kinds, strict=True):
        field = re.search(rb"(?i)(?<=\n)" + name + rb":([^\n]*)\n", rest)
        if field is None:
            found.append(b"")
            continue
        value = field[1].removesuffix(b"\r").strip(b" \t")
        if not re.fullmatch(kind, value) or (name == b"content-length" and not int(value)):
            return None
        start = field.start(1) + len(field[1]) - len(field[1].lstrip(b" \t"))
        rest = rest[:start] + rest[start + len(value) :]
        found.append(value)
    return rest, int(found[0] or 0), int(found[1] or -1), *found[2:]  # type: ignore[return-value]


def cut(page: bytearray, size: int) -> bytes:
    """Return the first `size` bytes of `page`."""
    if not 0 <= size <= len(page):
        raise IndexError(f"{size} bytes of {len(page)}")
    return bytes(page[:size])


def joined(head: list[bytes], parts: list[bytes]) -> bytes:
    """Return all bytes of `head`, then all of `parts`."""
    if any(type(part) is not bytes for part in (*head, *parts)):
        raise TypeError("no bytes")
    return b"".join([*head, *parts])


def quoted(text: str) -> bytes | None:
    """Return `text` as a string of JSON if it needs no escapes."""
    found = json.dumps(text)
    return found.encode() if found == f'"{text}"' and "\x7f" not in text else None


def receipt_line(start: bytes, end: bytes, energy_j: float, carbon_mg: float) -> bytes:
    """Return the line of a receipt with these amounts."""
    if any(type(each) is not bytes for each in (start, end)):
        raise TypeError("no bytes")
    amounts = f'energy-j="{_billionths(energy_j)}", carbon-mg="{_billionths(carbon_mg)}"'
    return start + amounts.encode() + end


def _billionths(value: float) -> str:
    """Return `value` with nine places, exactly as many billionths as `round` gives."""
    parts = Decimal(round(value * 1e9))
    return format(parts.scaleb(-9, Context(prec=400)), "f")


def siphash_of(key: bytes, data: bytes) -> int:
    """Return SipHash-2-4 of any bytes, as the paper has it."""
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        _rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    _rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _rounds(v: list[int], count: int) -> None:
    def rotated(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) % 2**64

    for _ in range(count):
        v[0] = (v[0] + v[1]) % 2**64
        v[1] = rotated(v[1], 13) ^ v[0]
        v[0] = rotated(v[0], 32)
        v[2] = (v[2] + v[3]) % 2**64
        v[3] = rotated(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) % 2**64
        v[3] = rotated(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) % 2**64
        v[1] = rotated(v[1], 17) ^ v[2]
        v[2] = rotated(v[2], 32)


def siphash(low: int, high: int, number: int) -> int:
    """Return SipHash-2-4 of a number of 64 bits, under a key in two halves."""
    key = low.to_bytes(8, "little") + high.to_bytes(8, "little")
    return siphash_of(key, number.to_bytes(8, "little"))


def sealed(prefix: bytes, number: int, low: int, high: int) -> bytes:
    """Return `prefix`, `number` and its tag."""
    if type(prefix) is not bytes:
        raise TypeError("no bytes")
    return b"%b%x-%016x" % (prefix, number, siphash(low, high, number))


def unsealed(prefix: bytes, text: bytes, low: int, high: int) -> int | None:
    """Return the number in `text`, if `sealed` made it."""
    if type(prefix) is not bytes or type(text) is not bytes:
        raise TypeError("no bytes")
    found = re.fullmatch(re.escape(prefix) + rb"(0|[1-9a-f][0-9a-f]{0,15})-([0-9a-f]{16})", text)
    if found is None:
        return None
    number, tag = int(found[1], 16), int(found[2], 16)
    return number if siphash(low, high, number) == tag else None


def monotonic_ns() -> int:
    """Return the time of the monotonic clock."""
    return time.monotonic_ns()
