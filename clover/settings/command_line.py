"""A command line split into settings, a command's own options and positional arguments.

argparse is not used: flags come from the records of `clover.config`, values are kept as text together with their
origin, and an unknown flag must be answered with the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.settings.schema import FLAGS, Setting


@dataclass(frozen=True)
class Option:
    """An option of a command that is not a setting, as `--print-config`.  `metavar` empty: it takes no value."""

    flag: str
    help: str
    metavar: str = ""


CONFIG = Option("--config", "read settings from this TOML file; a positional *.toml does the same", "FILE")


@dataclass
class CommandLine:
    """What was given: settings as text, options, and the remaining words in order."""

    settings: dict[str, tuple[Setting, str]] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)


def parse(argv: Sequence[str], options: Sequence[Option] = ()) -> CommandLine:
    """Split `argv`.  Of a repeated flag the last one counts.  Raises ConfigError with a remedy."""
    own = {option.flag: option for option in (*options, CONFIG)}
    line = CommandLine()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            line.positional += rest
            break
        if not word.startswith("-") or word == "-":
            line.positional.append(word)
            continue
        flag, equals, value = word.partition("=")
        setting = FLAGS.get(flag)
        option = own.get(flag)
        negated = FLAGS.get("--" + flag[5:]) if flag.startswith("--no-") else None
        takes_value = (setting is not None and not setting.boolean) or (option is not None and bool(option.metavar))
        if takes_value and not equals:
            if not rest:
                raise ConfigError(f"{flag} needs a value")
            value = rest.pop(0)
        if setting is not None:
            line.settings[setting.key] = (setting, value if takes_value or equals else "true")
        elif option is not None:
            if equals and not takes_value:
                raise ConfigError(f"{flag} takes no value")
            line.options[flag] = value if takes_value else "true"
        elif negated is not None and negated.boolean and not equals:
            line.settings[negated.key] = (negated, "false")
        else:
            raise ConfigError(
                f"unknown flag {flag}{did_you_mean(flag, [*FLAGS, *own])} (clover serve --help all lists them)"
            )
    return line


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
