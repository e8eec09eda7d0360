"""The options of `clover report`, for one server or several."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from clover import settings
from clover.config import ReportConfig
from clover.errors import ConfigError

FORMATS = ("table", "json", "csv", "html", "parquet")
WIDTH = 80
"""Columns if standard output is no terminal."""
_SHORT_S = 2 * 86_400.0
"""Length of a period up to which a terminal shows hours instead of days."""
_SUFFIXES = {".json": "json", ".csv": "csv", ".html": "html", ".htm": "html", ".parquet": "parquet", ".txt": "table"}


@dataclass(frozen=True)
class StatedSettings:
    """What the configuration says: the settings `[report]`, the state folder and the cache folder."""

    report: ReportConfig
    state_dir: str
    cache_dir: str


def configured(given: argparse.Namespace, environ: Mapping[str, str]) -> StatedSettings:
    """Return what the configuration says.  Raises ConfigError."""
    argv = ["--config", given.config] if given.config else []
    config = settings.load(argv, environ).config
    return StatedSettings(config.report, given.state_dir or config.state_dir, config.cache_dir)


def market(given: argparse.Namespace, stated: ReportConfig) -> float | None:
    """Return the market-based factor (gCO2e/kWh); None if none was given.  Raises ConfigError."""
    if given.market_g is None:
        return stated.market_g_per_kwh
    if not 0.0 <= given.market_g < math.inf:
        raise ConfigError(f"--market-g is in gCO2e/kWh, 0 or more, not {given.market_g:g}")
    return float(given.market_g)


def suffix_format(out: str) -> str:
    """Return the format that the name of a file to write says; "" if it says none."""
    return _SUFFIXES.get(Path(out).suffix.lower(), "")


def format_of(given: argparse.Namespace) -> str:
    """Return the format, and refuse what cannot be written where it is to go."""
    form: str = given.format or suffix_format(given.out) or "table"
    if not given.out and (form == "parquet" or (form == "html" and sys.stdout.isatty())):
        raise ConfigError(f"--format {form} is not for a terminal: give --out FILE")
    return form


def usual_time(length_s: float, form: str) -> Literal["hour", "day"]:
    """Return what a period of this length is split by if nothing else was asked for."""
    return "hour" if length_s <= _SHORT_S or form in ("csv", "parquet") else "day"


def json_of(document: msgspec.Struct) -> bytes:
    """Return a report as JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def write(document: bytes, out: str) -> None:
    """Write to the file `out`, or to standard output.  Raises ConfigError."""
    if not out:
        sys.stdout.write(document.decode())
        return
    try:
        Path(out).write_bytes(document)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}") from error
    size = f"{len(document) / 1e6:.1f} MB" if len(document) >= 1e5 else f"{len(document) / 1e3:.1f} kB"
    print(f"clover report: wrote {out} ({size})", file=sys.stderr)
