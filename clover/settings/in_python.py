"""Advice that names flags of the command line, for a caller who gives settings as arguments of `clover.Server`."""

from __future__ import annotations

import re

from clover.settings.schema import FLAGS

_FLAG = re.compile(r"(?P<flag>--[a-z][a-z0-9-]*)(?P<value> (?:\d+(?:\.\d+)?|[a-z]+:[A-Z]+|[a-z]+)\b)?")


def in_python(text: str) -> str:
    """Return `text` with flags of settings as arguments: "--start-s 300" becomes "start_s=300"."""
    return _FLAG.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    setting = FLAGS.get(found["flag"])
    if setting is None:
        return found[0]
    value, rest = (found["value"] or "").strip(), ""
    if setting.boolean:
        value, rest = "True", found["value"] or ""
    elif value in setting.choices or ":" in value:
        value = f'"{value}"'
    elif not value or value.isalpha():
        value, rest = "...", found["value"] or ""
    return f"{setting.name}={value}{rest}"
