"""Reading `cluster.toml`: strictly, with errors that name the key and its line.

`tomllib` keeps no positions.  So the line of a key is searched in the text once there is an error to report: the n-th
header of its table, then the key below it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from clover import carbon
from clover.cluster.cluster_records import ClusterFile, NodeSection, RegionSection
from clover.config import CarbonConfig
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.malformed import MALFORMED
from clover.settings.schema import PROVIDER, SETTINGS
from clover.settings.secrets import FILE, read_keys

Place = tuple[str | int, ...]
"""Where a value stands: ("node", 2, "port")."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([A-Za-z_][A-Za-z0-9_]*)")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_AT = re.compile(r" - at `\$?([^`]*)`")


def read(path: str | Path) -> ClusterFile:
    """Return what the file at `path` says.  ConfigError, which names the key and its line, if it cannot be used.

    Relative paths of traces, of configurations of nodes, of families (./NAME) and of certificates count from the folder
    of the file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, str(path), file.resolve().parent)


def parse(text: str, path: str = "cluster.toml", folder: Path | None = None) -> ClusterFile:
    """Return what `text` says; `path` names it in errors, `folder` is what relative paths count from (None: they stay
    as they are, and the files are not looked at).  ConfigError."""
    try:
        data = tomllib.loads(text)
    except MALFORMED as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    source = _Source(text, path, with_files=folder is not None)
    for name, item in (("region", "north"), ("node", "north-1"), ("family", "fashion")):
        if not data.get(name):
            key = "family" if name == "family" else "name"
            raise ConfigError(f'{path}: there is no [[{name}]]: give at least one, with {key} = "{item}"')
        if not isinstance(data[name], list) or not all(isinstance(entry, dict) for entry in data[name]):
            source.fail((name,), f"must be tables, each under [[{name}]]")
    try:
        file = msgspec.convert(data, ClusterFile)
    except msgspec.ValidationError as error:
        source.refuse(str(error), data)
    file = _resolve_paths(file, folder) if folder is not None else file
    _check(file, source)
    return file


def render_carbon(config: CarbonConfig) -> dict[str, str]:
    """Return the environment variables that give a server the carbon section of its region: those other than the
    defaults, so that they stand above what the node's own file says."""
    sections = {}
    default = CarbonConfig()
    for setting in SETTINGS:
        if setting.section == "carbon":
            value = getattr(config, setting.leaf)
            if value != getattr(default, setting.leaf) or setting.leaf == "source":
                sections[setting.env] = msgspec.json.encode(value).decode() if setting.key == PROVIDER else str(value)
    return sections


def line_of(text: str, place: Place) -> int:
    """Return the number of the line on which the value at `place` stands, or else the table around it; 1 if neither
    is found."""
    wanted = [(str(step), place[at + 1] if at + 1 < len(place) and isinstance(place[at + 1], int) else None)
              for at, step in enumerate(place) if isinstance(step, str)]  # fmt: skip
    names = [name for name, _ in wanted]
    repeat = next((int(number) for _, number in wanted if number is not None), None)
    seen = -1
    table: list[str] = []
    best = 0, 1
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if header := re.match(r"(\[\[?)\s*([^\]]+?)\s*\]", stripped):
            table = [part.strip().strip("\"'") for part in header[2].split(".")]
            if header[1] == "[[" and table[:1] == names[:1] and len(table) == 1:
                seen += 1
            key = table
        elif assigned := re.match(r"([A-Za-z0-9_.\"'-]+)\s*=", stripped):
            key = table + [part.strip("\"'") for part in assigned[1].split(".")]
        else:
            continue
        if repeat is not None and seen != repeat:
            continue
        common = 0
        while common < min(len(key), len(names)) and key[common] == names[common]:
            common += 1
        if common == len(key) and common > best[0]:
            best = common, number
        if common < len(key) and common == len(names) and common > best[0]:
            best = common, number
    return best[1]


class _Source:
    """The text of a file, for errors about it; `with_files`: whether the files that it names are looked at."""

    def __init__(self, text: str, path: str, *, with_files: bool) -> None:
        self.with_files = with_files
        self._text = text
        self._path = path

    def fail(self, place: Place, why: str) -> NoReturn:
        """Raise ConfigError about the value at `place`."""
        key = _words(place)
        raise ConfigError(f"{self._path}, line {line_of(self._text, place)}: {key} {why}")

    def refuse(self, error: str, data: Any) -> NoReturn:
        """Raise ConfigError for what msgspec says of `data`."""
        at = _AT.search(error)
        place = _place(at[1]) if at is not None else ()
        what = error[: at.start()] if at is not None else error
        if unknown := _UNKNOWN.search(what):
            key = (*place, unknown[1])
            known = _keys(place)
            known_words = f"; it has {', '.join(known)}" if known else ""
            self.fail(key, f"is no key of a cluster{did_you_mean(unknown[1], known) or known_words}")
        if missing := _MISSING.search(what):
            self.fail((*place, missing[1]), "is missing")
        value: Any = data
        for step in place:
            if isinstance(value, dict | list):
                try:
                    value = value[step]  # type: ignore[index]  # a place leads down its own data
                except (KeyError, IndexError, TypeError):
                    value = None
        shown = "" if "key" in str(place[-1:]) or "password" in str(place[-1:]) else f", not {value!r}"
        self.fail(place, f"{_line_of_key(what)}{shown if isinstance(value, str | int | float | bool) else ''}")


def _line_of_key(error: str) -> str:
    """Return an error of msgspec as words that follow the key."""
    error = re.sub(r", got `[^`]*`$", "", error)
    error = error.replace("`", "")
    error = error[:1].lower() + error[1:]
    return "must be " + error.removeprefix("expected ") if error.startswith("expected ") else error


def _place(path: str) -> Place:
    return tuple((int(number) if number and number.isdigit() else name or 0) for number, name in _STEP.findall(path))


def _words(place: Place) -> str:
    """Return "node 2 (from 1): port" as `node[2].port`, counted from 1 as people do."""
    words = ""
    for step in place:
        words += f"[{step + 1}]" if isinstance(step, int) else f".{step}" if words else step
    return words or "the file"


def _keys(place: Place) -> tuple[str, ...]:
    """Return the keys that a table at `place` may have."""
    kinds: dict[tuple[str, ...], type[msgspec.Struct]] = {(): ClusterFile}
    for field in msgspec.structs.fields(ClusterFile):
        for kind in _structs(field.type):
            kinds[(field.name,)] = kind
    kinds[("region", "carbon")] = CarbonConfig
    struct_keys = kinds.get(tuple(step for step in place if isinstance(step, str)))
    return struct_keys.__struct_fields__ if struct_keys is not None else ()


def _structs(kind: Any) -> Iterable[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in getattr(kind, "__args__", ()):
        yield from _structs(part)


# --- rules that hold between settings ---------------------------------------------------------------------------------


def _check(file: ClusterFile, source: _Source) -> None:
    _check_names(file, source)
    regions = [item.name for item in file.region]
    for at, region in enumerate(file.region):
        _check_region(region, at, regions, file, source)
    ends: dict[str, int] = {}
    for at, node in enumerate(file.node):
        if node.region not in regions:
            source.fail(
                ("node", at, "region"),
                f"{node.region!r} is no region of this file: {', '.join(regions)}{did_you_mean(node.region, regions)}",
            )
        _check_node(node, at, ends, source)
    for at, family in enumerate(file.family):
        for origin, allowed in family.regions.items():
            for name in (origin, *allowed):
                if name not in regions:
                    hint = did_you_mean(name, regions)
                    source.fail(
                        ("family", at, "regions", origin), f"names {name!r}, which is no region of this file{hint}"
                    )
            if not allowed:
                source.fail(("family", at, "regions", origin), f"leaves rows of {origin} no region to be answered in")
            if not any(node.region in allowed for node in file.node):
                source.fail(
                    ("family", at, "regions", origin), f"lets rows of {origin} go to regions without a node only"
                )
    if file.cluster.lease_s < 2.0 * file.cluster.step_s:
        source.fail(
            ("cluster", "lease_s"),
            f"is {file.cluster.lease_s:g}, and must be at least twice step_s ({file.cluster.step_s:g}): nodes would "
            "follow their own policy between two looks of the controller",
        )
    if file.cluster.store and not file.cluster.store.startswith("file:"):
        source.fail(("cluster", "store"), f"must read file:PATH, not {file.cluster.store!r}")
    if file.ingress is not None and not any(region.listen or region.listen_grpc for region in file.region):
        source.fail(("ingress",), "has nothing to listen on: give regions listen = HOST:PORT")


def _check_names(file: ClusterFile, source: _Source) -> None:
    if not _NAME.fullmatch(file.cluster.name):
        source.fail(("cluster", "name"), _NAME_RULE.format(file.cluster.name))
    for table, key, names in (
        ("region", "name", [item.name for item in file.region]),
        ("node", "name", [item.name for item in file.node]),
        ("family", "family", [item.family for item in file.family]),
    ):
        for at, name in enumerate(names):
            if not _NAME.fullmatch(name):
                source.fail((table, at, key), _NAME_RULE.format(name))
            if name in names[:at]:
                source.fail((table, at, key), f"{name!r} is the name of two: give one of them another name")


_NAME_RULE = "must be 1 to 63 of A-Z a-z 0-9 . _ - and begin with a letter or digit, not {!r}"


def _check_region(region: RegionSection, at: int, regions: Sequence[str], file: ClusterFile, source: _Source) -> None:
    for key in ("listen", "listen_grpc"):
        address = getattr(region, key)
        match = _ADDRESS.fullmatch(address)
        port = int(match[2]) if match is not None else 0
        if address and not 0 < port < 65536:
            source.fail(("region", at, key), f"must read HOST:PORT, not {address!r}")
        others = [getattr(other, name) for other in file.region for name in ("listen", "listen_grpc")]
        if address and others.count(address) > 1:
            source.fail(("region", at, key), f"{address!r} is listened on twice")
    for name, value in region.latency_ms.items():
        if name not in regions:
            source.fail(("region", at, "latency_ms", name), f"is no region of this file{did_you_mean(name, regions)}")
        if not 0.0 <= value < float("inf"):
            source.fail(("region", at, "latency_ms", name), f"must be at least 0, not {value!r}")
    try:
        carbon.build(region.carbon)
    except ConfigError as error:
        if source.with_files or "trace:" not in region.carbon.source:
            source.fail(("region", at, "carbon"), f"cannot be used: {error}")


def _check_node(node: NodeSection, at: int, ends: dict[str, int], source: _Source) -> None:
    for key, port in (("port", node.port), ("grpc_port", node.grpc_port)):
        end = f"{node.address}:{port}"
        if port and end in ends:
            source.fail(("node", at, key), f"{end} is that of node[{ends[end] + 1}] too: give one of them another")
        if port:
            ends[end] = at
    for kind, count in node.devices.items():
        if count < 1:
            source.fail(("node", at, "devices"), f"has {count} of {kind}: give 1 or more")
    managed = ("--host", "--port", "--grpc-port", "--control", "--state-dir", "--config")
    for word in node.arguments:
        flag = word.partition("=")[0]
        if flag in managed:
            source.fail(("node", at, "arguments"), f"may not give {flag}: the cluster sets it by the node's other keys")


def _resolve_paths(file: ClusterFile, folder: Path) -> ClusterFile:
    """Return the file with its relative paths made absolute, and with the keys of carbon providers read from their
    files."""
    regions = tuple(
        msgspec.structs.replace(region, carbon=_with_paths(region.carbon, folder)) for region in file.region
    )
    nodes = tuple(
        msgspec.structs.replace(node, config=str(folder / node.config) if node.config else "") for node in file.node
    )
    ingress = file.ingress
    if ingress is not None:
        paths = {key: str(folder / getattr(ingress, key)) for key in ("tls_cert", "ca_file") if getattr(ingress, key)}
        ingress = msgspec.structs.replace(ingress, **paths, token=_absolute(ingress.token, folder))
    families = tuple(
        msgspec.structs.replace(family, source=str(folder / family.source))
        if family.source.startswith((".", "/"))
        else family
        for family in file.family
    )
    cluster = file.cluster
    if cluster.store:
        store = f"file:{folder / cluster.store.removeprefix('file:')}"
        cluster = msgspec.structs.replace(cluster, store=store)
    if cluster.folder:
        cluster = msgspec.structs.replace(cluster, folder=str(folder / cluster.folder))
    return msgspec.structs.replace(file, cluster=cluster, region=regions, node=nodes, family=families, ingress=ingress)


def _with_paths(config: CarbonConfig, folder: Path) -> CarbonConfig:
    sources = []
    for source in config.source.split(","):
        kind, colon, rest = source.strip().partition(":")
        name, mark, options = rest.partition("?")
        sources.append(f"{kind}:{folder / name}{mark}{options}" if kind == "trace" and colon else source.strip())
    keys = read_keys(msgspec.structs.replace(one, key=_absolute(one.key, folder)) for one in config.provider)
    return msgspec.structs.replace(config, source=",".join(sources), provider=keys)


def _absolute(secret: str, folder: Path) -> str:
    """Return `file:PATH` with a path that counts from `folder`; another secret as it is."""
    return f"{FILE}{folder / secret.removeprefix(FILE)}" if secret.startswith(FILE) else secret
