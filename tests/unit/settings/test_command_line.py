"""Advice for the command line, said in the words of Python."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import settings
from clover.settings.command_line import in_python
from clover.settings.schema import FLAGS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not ready within 60 s (--start-s 300 allows more)", "not ready within 60 s (start_s=300 allows more)"),
        ("--profile force measures again", 'profile="force" measures again'),
        ("or start with --profile auto", 'or start with profile="auto"'),
        ("a name of its own, as with --ledger-name", "a name of its own, as with ledger_name=..."),
        ("raise --silent-s, or give a pace file", "raise silent_s=..., or give a pace file"),
        ("a token or --insecure", "a token or insecure=True"),
        ("--carbon trace:FILE (hourly values)", 'carbon="trace:FILE" (hourly values)'),
        ("see `clover profile` with --force", "see `clover profile` with --force"),
        ("--port 9000.", "port=9000."),
    ],
)
def test_flags_become_arguments(text: str, expected: str) -> None:
    assert in_python(text) == expected


@given(st.text())
def test_a_text_without_flags_stays_as_it_is(text: str) -> None:
    if "--" not in text:
        assert in_python(text) == text


@given(st.lists(st.sampled_from(sorted(FLAGS)), max_size=4), st.text(alphabet="ab 1.,()", max_size=20))
def test_no_flag_of_a_setting_is_left_and_every_argument_is_a_setting(flags: list[str], between: str) -> None:
    said = in_python(f" {between} ".join(flags))
    names = {setting.name for setting in settings.SETTINGS}
    assert not set(re.findall(r"--[a-z][a-z-]*[a-z]", said)) & set(FLAGS)
    assert set(re.findall(r"([a-z_]+)=", said)) <= names
