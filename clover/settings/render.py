"""Settings as text: help, and the effective configuration as TOML."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from clover.config import ProviderConfig, TenantConfig, TokenConfig
from clover.settings.command_line import CONFIG, Option
from clover.settings.load import Settings
from clover.settings.schema import (
    ENTRY,
    FAMILY,
    PROVIDER,
    SECTIONS,
    SETTINGS,
    TABLES,
    TENANT,
    TOKEN,
    Setting,
)
from clover.settings.secrets import FILE

_TITLES = {
    "listen": "Listen",
    FAMILY: "Families (these apply to every family named)",
    "carbon": "Carbon",
    "controller": "Controller",
    "energy": "Energy",
    "workers": "Workers",
    "log": "Logging",
    "otel": "OpenTelemetry",
    "": "Storage and profile",
    "limits": "Limits",
}
_HELP_COLUMN = 32
_ORIGIN_COLUMN = 44


def help_text(
    usage: str,
    description: str,
    options: Sequence[Option] = (),
    *,
    only: Collection[str] | None = None,
    first: Collection[str] | None = None,
) -> str:
    """Return the help of a command: its own options first, then settings by section.

    `only` names the keys of the settings that the command uses; the help says that it accepts the others, too, so that
    one command line, file and environment fit the server and this command.  `first` names those that the help is about;
    it says how to see the others.
    """
    shown_keys = only if only is not None else first
    width = max(72, min(shutil.get_terminal_size((100, 24)).columns, 120))
    called = textwrap.wrap(f"usage: {usage}", width, subsequent_indent="  ", break_long_words=False)
    parts = [*called, "", textwrap.fill(description, width), "", "Options"]
    for option in (*options, CONFIG):
        parts += _help_line(f"{option.flag} {option.metavar}".strip(), option.help, width)
    parts += _help_line(
        "-h, --help", "show this help" if first is None else "show this help; --help all: all of it", width
    )
    for section in (*_TITLES, *(name for name in SECTIONS if name not in _TITLES)):
        given = [setting for setting in _of(section) if setting is not ENTRY]
        used = [setting for setting in given if shown_keys is None or setting.key in shown_keys]
        if used:
            parts += ["", _TITLES.get(section, section.capitalize())]
        for setting in used:
            head = setting.flag if setting.boolean else f"{setting.flag} {setting.metavar}"
            default = _plain(setting.default)
            shown = f"{setting.help} [{default}]" if default and not setting.boolean else setting.help
            parts += _help_line(head, shown, width)
    every, example = "Every flag", "--port is CLOVER_PORT) and a key of the TOML file (listen.port)"
    if only is not None:
        every = "The server's other settings are accepted and not used. Every flag"
        example = "--cores is CLOVER_CORES) and a key of the TOML file (workers.cores)"
    if first is not None:
        every = f"{len(SETTINGS) - 1 - len(first)} more settings: --help all. Every flag"
    parts += [
        "",
        *textwrap.wrap(f"{every} is also an environment variable ({example}.", width),
        *textwrap.wrap("Precedence: command line, environment, file, default.", width),
        *textwrap.wrap("Exit codes: 0 done, 2 configuration, 3 cannot start.", width),
    ]
    return "\n".join(parts)


def print_config(settings: Settings) -> str:
    """Return the effective configuration as TOML that gives the same configuration again, with the origin of each line.

    Secrets are masked (as comments, so that a masked value is never read back), but shown as `file:PATH` if they were
    given so.
    """
    config = settings.config
    files = {what: FILE + path for what, path in config.secret_files}
    lines: list[str] = []
    for setting in SETTINGS:
        if not setting.section:
            lines.append(_toml_line(setting, getattr(config, setting.leaf), settings.origins[setting.key]))
    for section in SECTIONS:
        if section == FAMILY:
            for index, family in enumerate(config.families):
                lines += ["", f"[[{FAMILY}]]"]
                for setting in _of(FAMILY):
                    origin = settings.origins[f"{FAMILY}.{index}.{setting.leaf}"]
                    lines.append(_toml_line(setting, getattr(family, setting.leaf), origin))
        elif section:
            lines += ["", f"[{section}]"]
            record = getattr(config, section)
            for setting in _of(section):
                if setting.key != PROVIDER:
                    value = files.get(setting.key, getattr(record, setting.leaf))
                    lines.append(_toml_line(setting, value, settings.origins[setting.key]))
    tables: dict[str, Sequence[ProviderConfig | TenantConfig | TokenConfig]]
    tables = {PROVIDER: config.carbon.provider, TENANT: config.tenants, TOKEN: config.tokens}
    for kind, records in tables.items():
        for one in records:
            lines += ["", f"[[{kind}]]"]
            for setting in TABLES[kind].values():
                value = files.get(f"{kind} {one.name}: {setting.leaf}", getattr(one, setting.leaf))
                if value != setting.default:
                    lines.append(_toml_line(setting, value, settings.origins[kind]))
    return "\n".join(lines) + "\n"


def _of(section: str) -> list[Setting]:
    return [setting for setting in SETTINGS if setting.section == section]


def _help_line(head: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - _HELP_COLUMN) or [""]
    first = f"  {head}"
    indent = " " * _HELP_COLUMN
    if len(first) >= _HELP_COLUMN - 1:
        return [first, *(indent + line for line in wrapped)]
    return [first.ljust(_HELP_COLUMN) + wrapped[0], *(indent + line for line in wrapped[1:])]


def _plain(value: Any) -> str:
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _toml_line(setting: Setting, value: Any, origin: str) -> str:
    if setting.secret and value and not value.startswith(FILE):
        return f"# {setting.leaf} = ***".ljust(_ORIGIN_COLUMN) + f"  # {origin}"
    if value is None:
        return f"# {setting.leaf} is derived".ljust(_ORIGIN_COLUMN) + f"  # {origin}"
    return f"{setting.leaf} = {_toml(value)}".ljust(_ORIGIN_COLUMN) + f"  # {origin}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
