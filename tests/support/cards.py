"""What the cards of families (`models/NAME/README.md`) show first: how to install, serve and ask one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.fenced import ROOT, found

SERVE = "python -m clover.serve "
WIDTH = 80

# What is in the output of a card's commands if the family answered as its card says.
ANSWERS = {
    "fashion": r'"data":\["[\d.]+:9:Ankle boot"',
    "language": r'"data":\["[\d.]+:9:de"',
    "ocr": r"Invoice total 1,234\.56 NO-00042",
    "embedding": r'"data":\[-0\.12237\d*,',
    "pitch": r"\b26[12]\.\d+ +0\.\d+",
    "efficientnet_lite": r"traffic light",
}
# The same of those whose published weights are not there: an answer, whatever it is.
UNTRAINED = {
    "efficientnet": r'"name":"probabilities"',
    "albert": r'"name":"answer".*"data":\["',
    "detection": r"^( +[-\d.e]+){4}",
}


class FirstCommands(NamedTuple):
    """The commands of a card's first block: what pip is to install, the server, and those that ask it, in order."""

    packages: str
    serve: str
    asks: tuple[str, ...]


def card(family: str) -> Path:
    """Return the card of a family."""
    return ROOT / "models" / family / "README.md"


def carded() -> tuple[str, ...]:
    """Return the families that have a card."""
    return tuple(sorted(path.parent.name for path in ROOT.glob("models/*/README.md")))


def first_commands(page: Path) -> FirstCommands:
    """Return the commands of a card's first `console` block.

    A command begins with `$ ` and ends before the next one.  Raises ValueError if the block does not install, serve on
    port 8000 and ask, in this order, or has a line that a terminal of 80 columns would break.
    """
    block = next(example for example in found(page) if example.language == "console")
    place = f"{page}:{block.line}"
    for line in block.text.splitlines():
        if len(line) > WIDTH:
            raise ValueError(f"{place}: longer than {WIDTH} columns: {line}")
    commands = [text.strip() for text in re.split(r"^\$ ", block.text, flags=re.MULTILINE) if text.strip()]
    if len(commands) < 3 or not commands[0].startswith("pip install ") or not commands[1].startswith(SERVE):
        raise ValueError(f"{place}: not pip install, {SERVE.strip()} and what asks it")
    install, serve, *asks = commands
    if "--port 8000" not in serve or not any("localhost:8000/" in ask for ask in asks):
        raise ValueError(f"{place}: what is served on port 8000 is not asked there")
    return FirstCommands(install.removeprefix("pip install ").strip("'\""), serve, tuple(asks))
