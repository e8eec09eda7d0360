"""A roll-out for people: in one sentence, and with its tests."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from clover.terminal import wrapped

_UNDER_WAY = ("starting", "trial", "promoting", "rolling back")
_UNDER = " " * 13


def words(found: dict[str, Any]) -> str:
    """Return a roll-out in one sentence."""
    phase, version, stable = found.get("phase"), found.get("version"), found.get("stable")
    if phase == "none" or version is None:
        return "no version was rolled out since the start"
    if phase == "checked":
        return f"version {version} could be tried beside version {stable}, with {found['percent']:g} % of the requests"
    if phase not in _UNDER_WAY:
        return f"version {version} {phase}: {found.get('why')}"
    asked, failed = found.get("requests") or {}, found.get("failed") or {}
    text = f"version {version} is beside version {stable} ({phase})"
    if asked:
        text += (
            f": {asked['new']} requests, {failed['new']} failed; stable {asked['stable']}, {failed['stable']} failed"
        )
    if found.get("waits_for"):
        text += f"; waits for {found['waits_for']}"
    return text


def show(found: dict[str, Any], console: Console) -> None:
    """Print a roll-out and its tests."""
    _say(f"{found.get('model', '')}: {words(found)}", "", console)
    if found.get("profile"):
        _say(f"  profile    {found['profile']}", _UNDER, console)
    for name, test in (found.get("tests") or {}).items():
        mean = "nothing yet" if test["mean"] is None else f"{test['mean']:+.4f}"
        needed = "" if test["needed"] else ", not needed"
        text = (
            f"  {name:<10} {mean}, limit {test['margin']:g} ({test['observations']} observations; evidence for it "
            f"{test['fine']:.0%}, against it {test['worse']:.0%} of what decides{needed})"
        )
        _say(text, _UNDER, console)


def _say(text: str, indent: str, console: Console) -> None:
    console.print(Text(wrapped(text, console.width, indent)), soft_wrap=True)
