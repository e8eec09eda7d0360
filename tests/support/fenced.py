"""The fenced blocks of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w+)(?: ([\w.]+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A fenced block: its page, line, language, the file's name beside the language, and its text."""

    page: Path
    line: int
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def found(*pages: Path) -> Iterator[Example]:
    """Yield the examples of pages, in order."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            yield Example(page, text.count("\n", 0, match.start()) + 1, match[1], match[2] or "", match[3])


def files_of(page: Path) -> dict[str, str]:
    """Return the texts of a page's examples that name a file, by that name."""
    return {example.file: example.text for example in found(page) if example.file}
