"""Protobuf's text format: what is written is read again, and errors name the line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.importing.draft import DraftError
from clover.importing.triton_config import TextEnum, message_of, number_of, numbers_of, parse, text_of
from tests.support.examples import examples

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = (
    st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != int(x) if abs(x) < 1e15 else True)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.from_regex(r"TYPE_[A-Z0-9]{1,5}", fullmatch=True).map(TextEnum)
)
MESSAGES = st.recursive(
    st.dictionaries(NAMES, st.lists(SCALARS, min_size=1, max_size=3), max_size=3),
    lambda inner: st.dictionaries(NAMES, st.lists(SCALARS | inner, min_size=1, max_size=3), max_size=3),
    max_leaves=12,
)


def literal(value: Any, quote: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, TextEnum):
        return value.name
    if isinstance(value, str):
        encoded = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\\"'" else f"\\{b:03o}" for b in value.encode())
        half = len(encoded) // 2 if "\\" not in encoded else 0
        return f"{quote}{encoded[:half]}{quote} {quote}{encoded[half:]}{quote}"
    return repr(value)


def written(message: dict[str, list[Any]], choose: Any) -> str:
    parts = []
    for name, values in message.items():
        texts = []
        for value in values:
            if isinstance(value, dict):
                left, right = choose(st.sampled_from(["{}", "<>"]))
                texts.append(f"{left} {written(value, choose)} {right}")
            else:
                texts.append(literal(value, choose(st.sampled_from("\"'"))))
        if choose(st.booleans()):
            parts.append(f"{name}: [{', '.join(texts)}]")
        else:
            colons = [" " if text[0] in "{<" and choose(st.booleans()) else ": " for text in texts]
            parts += [f"{name}{colon}{text}" for colon, text in zip(colons, texts, strict=True)]
    return choose(st.sampled_from([" ", "\n", ", ", "; ", ' # a comment { [ "\n'])).join(parts)


@settings(max_examples=examples(150), deadline=None)
@given(st.data(), MESSAGES)
def test_what_is_written_is_read(data: st.DataObject, message: dict[str, list[Any]]) -> None:
    assert parse(written(message, data.draw)) == message


@settings(max_examples=examples(150), deadline=None)
@given(st.text(st.sampled_from("ab{}<>[]:,;\"'\\ \n#01.-e") | st.characters(), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    said = ""
    try:
        parse(text)
    except DraftError as error:
        said = str(error)
    assert not said or said.startswith("line ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb {", "line 2: '}' is missing before the end"),
        ("a: 1 }", "line 1: a field's name is expected, not }"),
        ("a\n\n1", "line 3: ':' or '{' is expected after a"),
        ("a: [1 2]", "line 1: ',' or ']' is expected, not 2"),
        ("a: ,", "line 1: a value is expected, not ,"),
        ("a: 'x\n'", "line 1: "),
        ("a{" * 70, "deeper than 64"),
        ("a:\n'\\377'", "line 2: a text is not UTF-8"),
        ("a: '\\ud800'", "line 1: a text is not UTF-8"),
    ],
)
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(DraftError) as found:
        parse(text)
    assert said in str(found.value)


def test_fields_are_read_by_their_kind() -> None:
    found = parse("a: 1 a: 2 b: [3, 4] c { d: 'x' } e: TYPE_FP32 h: 0x1F o: 017")
    assert (number_of(found, "a"), numbers_of(found, "b"), text_of(found, "e")) == (2, (3, 4), "TYPE_FP32")
    assert (number_of(found, "h"), number_of(found, "o"), number_of(found, "none", 7)) == (31, 15, 7)
    assert text_of(message_of(found, "c") or {}, "d") == "x"
    for read, name in ((number_of, "e"), (numbers_of, "c"), (text_of, "a"), (message_of, "a")):
        with pytest.raises(DraftError, match=name):
            read(found, name)


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0" + "7" * 5000])
def test_a_number_of_thousands_of_digits_is_an_error_with_its_line(number: str) -> None:
    with pytest.raises(DraftError, match=r"line 2: a number has 500[0-2] digits"):
        parse(f"name: 'm'\nmax_batch_size: {number}")
