"""Layers of settings merged into one configuration that remembers where each value came from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clover.config import FamilyConfig, ServerConfig, TenantConfig, TokenConfig
from clover.errors import ConfigError
from clover.hints import did_you_mean, printable
from clover.malformed import MALFORMED
from clover.settings.check import check
from clover.settings.command_line import CommandLine, Option, parse
from clover.settings.schema import (
    BY_KEY,
    ENTRY,
    FAMILY,
    SECTIONS,
    SETTINGS,
    TABLES,
    TENANT,
    TOKEN,
    VARIABLES,
    Setting,
)
from clover.settings.secrets import read_secrets
from clover.settings.service_links import is_service_link

_CONFIG_VARIABLE = "CLOVER_CONFIG"
_FAMILIES_VARIABLE = "CLOVER_FAMILIES"
_NOT_OURS = {
    *("CLOVER_BUILD", "CLOVER_SANITIZE", "CLOVER_NATIVE", "CLOVER_NVML_LATENCY", "CLOVER_NVML_STATE", "CLOVER_URL"),
}
"""Variables of the build, the tests and the control client."""

_Value = tuple[Any, str]
_Bearer = TypeVar("_Bearer", TenantConfig, TokenConfig)


@dataclass(frozen=True)
class Settings:
    """The merged result.  `origins` maps each key ("listen.port", "families.0.slo_ms") to "default", "file PATH",
    "env CLOVER_X" or the flag; `options` holds the command's own options; `path` is the file that was read;
    `service_links` names variables that were ignored because Kubernetes set them for a Service."""

    config: ServerConfig
    origins: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)
    path: str = ""
    service_links: tuple[str, ...] = ()


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape what an error's text quotes of a file, an argument or a variable, so that it steers no terminal."""
    try:
        yield
    except ConfigError as error:
        error.args = ("\n".join(map(printable, str(error).split("\n"))),)
        raise


@_escaped()
def load(argv: Sequence[str], environ: Mapping[str, str], *, options: Sequence[Option] = ()) -> Settings:
    """Read command line, environment and file.  Raises ConfigError for anything unknown, malformed or out of range."""
    line = parse(argv, options)
    links = tuple(sorted(name for name, text in environ.items() if is_service_link(name, text)))
    environ = {name: text for name, text in environ.items() if name not in links}
    families = [word for word in line.positional if not word.endswith(".toml")]
    path = _path_of(line, environ)
    file = _read_file(path) if path else _File()
    values: dict[str, _Value] = dict(file.values)
    for_families: dict[str, _Value] = {}
    for setting, text, origin in (*_from_environment(environ), *_from_line(line)):
        target = for_families if setting.section == FAMILY else values
        target[setting.leaf if setting.section == FAMILY else setting.key] = (
            setting.convert(text, origin, text=True),
            origin,
        )
    tenants = _read_bearers(file.tenants, TenantConfig)
    tokens = _read_bearers(file.tokens, TokenConfig)
    entries = _choose_families(families, environ, file.families)
    if len(entries) > 1 and "name" in for_families:
        raise ConfigError(f"{for_families['name'][1]}: one name cannot serve {len(entries)} families; use the file")
    config, origins = _assemble(values, [entry | for_families for entry in entries])
    config = read_secrets(msgspec.structs.replace(config, tenants=tenants, tokens=tokens))
    origins |= {name: f"file {path}" for name, found in ((TENANT, tenants), (TOKEN, tokens)) if found}
    check(config)
    own = {flag.lstrip("-"): value for flag, value in line.options.items() if flag != "--config"}
    return Settings(config, origins, own, path, links)


@_escaped()
def override(config: ServerConfig | None, families: Sequence[str] = (), **values: Any) -> ServerConfig:
    """Return `config` (the defaults for None) with settings by their names, as `port=0, slo_ms=20, log_level="debug"`.

    `families` replaces the families; settings of a family apply to all.  Raises ConfigError.
    """
    base = config or ServerConfig()
    if families:
        base = msgspec.structs.replace(base, families=tuple(FamilyConfig(family=name) for name in families))
    names = {setting.name: setting for setting in SETTINGS if setting is not ENTRY}
    for name, value in values.items():
        setting = names.get(name) or BY_KEY.get(name)
        if setting is None:
            raise ConfigError(f"unknown setting {name}{did_you_mean(name, names)}")
        value = setting.convert(list(value) if isinstance(value, tuple) else value, name)
        change: dict[str, Any] = {setting.leaf: value}
        if setting.section == FAMILY:
            changed = tuple(msgspec.structs.replace(family, **change) for family in base.families)
            base = msgspec.structs.replace(base, families=changed)
        elif setting.section:
            section = msgspec.structs.replace(getattr(base, setting.section), **change)
            base = msgspec.structs.replace(base, **{setting.section: section})
        else:
            base = msgspec.structs.replace(base, **change)
    base = read_secrets(base)
    check(base)
    return base


# --- the layers -------------------------------------------------------------------------------------------------------


@dataclass
class _File:
    values: dict[str, _Value] = field(default_factory=dict)
    families: list[dict[str, _Value]] = field(default_factory=list)
    tenants: list[dict[str, _Value]] = field(default_factory=list)
    tokens: list[dict[str, _Value]] = field(default_factory=list)


def _path_of(line: CommandLine, environ: Mapping[str, str]) -> str:
    named = [word for word in line.positional if word.endswith(".toml")]
    if "--config" in line.options:
        named.append(line.options["--config"])
    if len(named) > 1:
        raise ConfigError(f"more than one configuration file: {', '.join(named)}")
    return named[0] if named else environ.get(_CONFIG_VARIABLE, "")


def _from_line(line: CommandLine) -> list[tuple[Setting, str, str]]:
    return [(setting, text, setting.flag) for setting, text in line.settings.values()]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[Setting, str, str]]:
    known = {*VARIABLES, _CONFIG_VARIABLE, _FAMILIES_VARIABLE}
    found = []
    for name, text in environ.items():
        if not name.startswith("CLOVER_") or name in _NOT_OURS or name in (_CONFIG_VARIABLE, _FAMILIES_VARIABLE):
            continue
        if name not in VARIABLES:
            raise ConfigError(f"environment: unknown variable {name}{did_you_mean(name, known)}")
        found.append((VARIABLES[name], text, f"env {name}"))
    return found


def _read_file(path: str) -> _File:
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    origin = f"file {path}"
    file = _File()
    for name, value in data.items():
        if name == FAMILY:
            if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
                raise ConfigError(f"{path}: families must be tables, each under [[families]]")
            file.families = [_family_table(entry, index, path, origin) for index, entry in enumerate(value)]
        elif name in (TENANT, TOKEN):
            if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                raise ConfigError(f"{path}: {name}s must be tables, each under [[{name}]]")
            tables = [_bearer_table(name, entry, index, path, origin) for index, entry in enumerate(value)]
            if name == TENANT:
                file.tenants = tables
            else:
                file.tokens = tables
        elif name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {name} must be a table, [{name}]")
            for leaf, item in value.items():
                setting = BY_KEY.get(f"{name}.{leaf}") or _unknown(f"{name}.{leaf}", leaf, path)
                file.values[setting.key] = (setting.convert(item, origin), origin)
        else:
            setting = BY_KEY.get(name) or _unknown(name, name, path)
            file.values[setting.key] = (setting.convert(value, origin), origin)
    return file


def _family_table(entry: dict[str, Any], index: int, path: str, origin: str) -> dict[str, _Value]:
    table: dict[str, _Value] = {}
    for leaf, item in entry.items():
        setting = BY_KEY.get(f"{FAMILY}.{leaf}") or _unknown(f"{FAMILY}.{leaf}", leaf, path)
        table[leaf] = (setting.convert(item, origin), origin)
    if "family" not in table:
        raise ConfigError(f'{path}: families.{index} names no family (family = "fashion")')
    return table


def _bearer_table(kind: str, entry: dict[str, Any], index: int, path: str, origin: str) -> dict[str, _Value]:
    """Return the table of a tenant or of a token."""
    settings = TABLES[kind]
    table: dict[str, _Value] = {}
    for leaf, item in entry.items():
        setting = settings.get(leaf)
        if setting is None:
            raise ConfigError(f"{path}: unknown key {kind}.{leaf}{did_you_mean(leaf, settings)}")
        table[leaf] = (setting.convert(item, origin), origin)
    if "name" not in table:
        raise ConfigError(f"{path}: {kind}.{index} has no name")
    return table


def _read_bearers(tables: list[dict[str, _Value]], kind: type[_Bearer]) -> tuple[_Bearer, ...]:
    return tuple(kind(**{leaf: value for leaf, (value, _) in table.items()}) for table in tables)


def _unknown(key: str, leaf: str, path: str) -> Setting:
    elsewhere = [setting.key for setting in SETTINGS if leaf in (setting.leaf, setting.name)]
    elsewhere += [setting.key for setting in SETTINGS if setting.key.startswith(f"{key}_")]
    hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else did_you_mean(key, [*BY_KEY, *SECTIONS])
    raise ConfigError(f"{path}: unknown key {key}{hint}")


def _choose_families(
    positional: list[str], environ: Mapping[str, str], tables: list[dict[str, _Value]]
) -> list[dict[str, _Value]]:
    """Return the families to serve; one named on the command line takes the file's table of that family or name, if
    there is one."""
    listed = [part.strip() for part in environ.get(_FAMILIES_VARIABLE, "").split(",") if part.strip()]
    names, origin = (positional, "command line") if positional else (listed, f"env {_FAMILIES_VARIABLE}")
    if not names:
        return tables or [{"family": (family.family, "default")} for family in ServerConfig().families]
    chosen = []
    for name in names:
        table = next((t for t in tables if name in (t.get("name", ("", ""))[0], t["family"][0])), None)
        chosen.append(dict(table) if table is not None else {"family": (name, origin)})
    return chosen


def _assemble(values: dict[str, _Value], families: list[dict[str, _Value]]) -> tuple[ServerConfig, dict[str, str]]:
    origins: dict[str, str] = {}
    tree: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.section == FAMILY:
            continue
        if setting.key in values:
            value, origins[setting.key] = values[setting.key]
            target = tree.setdefault(setting.section, {}) if setting.section else tree
            target[setting.leaf] = value
        else:
            origins[setting.key] = "default"
    for index, entry in enumerate(families):
        tree.setdefault(FAMILY, []).append({leaf: value for leaf, (value, _) in entry.items()})
        for setting in SETTINGS:
            if setting.section == FAMILY:
                origins[f"{FAMILY}.{index}.{setting.leaf}"] = entry.get(setting.leaf, (None, "default"))[1]
    return msgspec.convert(tree, ServerConfig), origins
