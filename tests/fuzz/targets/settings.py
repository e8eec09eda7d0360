"""Configuration files: settings whose values are of their kinds, or a ConfigError in printable lines."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clover.config import ServerConfig
from clover.errors import ConfigError
from clover.settings import load
from clover.settings.schema import SETTINGS
from tests.fuzz import engine

INSTRUMENTED = ("clover.settings", "clover.config")
_FOLDER = engine.scratch("settings")
PATH = Path(_FOLDER.name) / "clover.toml"

DICTIONARY = (
    *(f"{setting.leaf} = ".encode() for setting in SETTINGS),
    *(b"[listen]", b"[limits]", b"[control]", b"[carbon]", b"[[families]]", b"[[tenants]]", b"family = ",
      b'"fashion"', b"[log]"),
    *(b"inf", b"nan", b"-1", b"0", b"1e400", b"9223372036854775808", b"true", b'""', b"[]", b"{}", b"[[[[", b"'''",
      b"1979-05-27"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return files that are taken, and nearly."""
    return [
        b"", b"[listen]\nport = 0\n", b'[listen]\nhost = "0.0.0.0"\ntoken = "t"\n', b"[limits]\nbody_bytes = 1000\n",
        b'[[families]]\nfamily = "fashion"\nslo_ms = 20\n', b'[[tenants]]\nname = "a"\ntoken = "abc"\nrate = 10\n',
        b'[carbon]\nsource = ["static:300"]\npoll_s = 60\n', b'[log]\nlevel = "debug"\n',
        b"[control]\ninterval_s = 1.5\n",
        b"[unknown]\nx = 1\n", b"port = 1\n",
    ]  # fmt: skip


def check(data: bytes) -> str:
    """Read one file."""
    PATH.write_bytes(data)
    try:
        settings = load([str(PATH)], {})
    except ConfigError as error:
        text = str(error)
        assert len(text) < 4000, text
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        return f"refused: {text.replace(_FOLDER.name, '')}"
    assert msgspec.convert(msgspec.to_builtins(settings.config), ServerConfig) == settings.config
    return repr(
        sorted(
            (key, origin.replace(_FOLDER.name, "")) for key, origin in settings.origins.items() if origin != "default"
        )
    )
