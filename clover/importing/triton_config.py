"""Triton's `config.pbtxt`: protobuf's text format, read into plain values, and the fields that Clover uses.

Unknown fields are kept, so that a model is refused for them rather than served without them.  Messages are written
`name { ... }`, `name: { ... }` or `name < ... >`, lists `[a, b]` or by repetition;
strings are quoted either way, with C's escapes, and adjacent ones are joined; `#` begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from clover.importing.draft import DraftError

Value: TypeAlias = "str | int | float | bool | TextEnum | Message"
Message: TypeAlias = "dict[str, list[Value]]"
"""The values of each field in the order they stand there."""

_MOST_DIGITS = 24
"""Longest whole number of 64 bits, in octal, with zeros before it."""
MOST_DEPTH = 64
_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[fF]?(?![\w.]))
      | (?P<name>-?[A-Za-z_][\w.]*)
      | (?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class TextEnum(NamedTuple):
    """A word that is not quoted, as TYPE_FP32."""

    name: str


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse(text: str) -> Message:
    """Return the message that a text holds.  Raises DraftError, which names the line."""
    reader = _Reader(list(_tokens(text)))
    return reader.message("", 0)


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise DraftError(f"line {line}: {text[at : at + 10].splitlines()[0]!r} cannot be read")
        if match.lastgroup != "space":
            yield _Token(str(match.lastgroup), match[0], line)
        line += match[0].count("\n")
        at = match.end()
    yield _Token("end", "the end", line)


class _Reader:
    """Reads a list of tokens from front to back."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def message(self, end: str, depth: int) -> Message:
        """Return the fields up to the mark `end` ("": the end of the text)."""
        if depth > MOST_DEPTH:
            raise DraftError(f"line {self._next.line}: messages lie deeper than {MOST_DEPTH} in each other")
        fields: Message = {}
        while True:
            token = self._take()
            if token.kind == "end" or token.text == end:
                if token.text != (end or "the end"):
                    raise DraftError(f"line {token.line}: {end!r} is missing before the end")
                return fields
            if token.kind != "name":
                raise DraftError(f"line {token.line}: a field's name is expected, not {token.text}")
            values = fields.setdefault(token.text, [])
            colon = self._skip(":")
            if self._next.text == "[" and self._next.kind == "mark":
                values += self._list(depth)
            elif self._next.text in ("{", "<") or colon:
                values.append(self._value(depth))
            else:
                raise DraftError(f"line {self._next.line}: ':' or '{{' is expected after {token.text}")
            self._skip(",", ";")

    def _list(self, depth: int) -> list[Value]:
        self._take()
        values: list[Value] = []
        while not self._skip("]"):
            if values and not self._skip(","):
                raise DraftError(f"line {self._next.line}: ',' or ']' is expected, not {self._next.text}")
            values.append(self._value(depth))
        return values

    def _value(self, depth: int) -> Value:
        token = self._take()
        if token.kind == "mark" and token.text in "{<":
            return self.message("}" if token.text == "{" else ">", depth + 1)
        if token.kind == "string":
            joined = _unescape(token)
            while self._next.kind == "string":
                joined += _unescape(self._take())
            try:
                return joined.decode()
            except UnicodeDecodeError as error:
                raise DraftError(f"line {token.line}: a text is not UTF-8") from error
        if token.kind == "number":
            return _number(token)
        if token.kind == "name":
            if token.text in ("true", "false"):
                return token.text == "true"
            if token.text.lstrip("-").lower() in ("inf", "infinity", "nan"):
                return float(token.text)
            return TextEnum(token.text)
        raise DraftError(f"line {token.line}: a value is expected, not {token.text}")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _skip(self, *marks: str) -> bool:
        if self._next.kind == "mark" and self._next.text in marks:
            self._take()
            return True
        return False


def _number(token: _Token) -> int | float:
    plain = token.text.lower()
    digits = plain.lstrip("+-")
    if not digits.startswith("0x") and not digits.isdigit():
        return float(plain.rstrip("f"))
    if len(digits) > _MOST_DIGITS:
        raise DraftError(f"line {token.line}: a number has {len(digits)} digits; no field holds so many")
    if digits.startswith("0x"):
        return int(plain, 16)
    return int(plain, 8) if len(digits) > 1 and digits[0] == "0" and not set(digits) & {"8", "9"} else int(plain)


def _unescape(token: _Token) -> bytes:
    def one(match: re.Match[bytes]) -> bytes:
        hexadecimal, octal, short, long, plain = match.groups()
        if hexadecimal:
            return bytes([int(hexadecimal, 16)])
        if octal:
            return bytes([int(octal, 8) & 0xFF])
        if short or long:
            code = int(short or long, 16)
            if code > 0x10FFFF:
                raise DraftError(f"line {token.line}: there is no character {code:#x}")
            return chr(code).encode(errors="surrogatepass")
        return _PLAIN.get(plain, plain)

    return _ESCAPE.sub(one, token.text[1:-1].encode(errors="surrogateescape"))


def last(message: Mapping[str, list[Value]], name: str, usual: Value = "") -> Value:
    """Return the value of a field that stands once; the last one counts, as in protobuf."""
    values = message.get(name)
    return values[-1] if values else usual


def text_of(message: Mapping[str, list[Value]], name: str) -> str:
    """Return a text or the word of an enumeration; "" if it is not there.  Raises DraftError for anything else."""
    value = last(message, name)
    if isinstance(value, TextEnum):
        return value.name
    if not isinstance(value, str):
        raise DraftError(f"{name} is not a text")
    return value


def number_of(message: Mapping[str, list[Value]], name: str, usual: int = 0) -> int:
    """Return a whole number.  Raises DraftError for anything else."""
    value = last(message, name, usual)
    if type(value) is not int:
        raise DraftError(f"{name} is not a whole number")
    return value


def numbers_of(message: Mapping[str, list[Value]], name: str) -> tuple[int, ...]:
    """Return whole numbers.  Raises DraftError for anything else."""
    values = message.get(name, [])
    if any(type(value) is not int for value in values):
        raise DraftError(f"{name} are not whole numbers")
    return tuple(value for value in values if isinstance(value, int))


def message_of(message: Mapping[str, list[Value]], name: str) -> Message | None:
    """Return a message that stands once; None if it is not there.  Raises DraftError for anything else."""
    messages = messages_of(message, name)
    return messages[-1] if messages else None


def messages_of(message: Mapping[str, list[Value]], name: str) -> list[Message]:
    """Return messages.  Raises DraftError for anything else."""
    values = message.get(name, [])
    if any(not isinstance(value, dict) for value in values):
        raise DraftError(f"{name} is not a message in braces")
    return [value for value in values if isinstance(value, dict)]
