"""From command line, environment and file to one validated `ServerConfig`, with the origin of every value.

Nothing is declared here: keys, flags and variables are read off the records of `clover.config`.  A setting has one
name in three spellings.  `listen.port` in TOML is `--port` on the command line and `CLOVER_PORT` in the environment:
the name is the leaf of the key, with the section in front where the leaf alone would say too little (`log.level` is
`--log-level`, `limits.body_bytes` is `--limit-body-bytes`), and `carbon.source` is plainly `--carbon`.

Precedence: command line, then environment, then file, then default.  Settings of a family (`[[families]]` in the
file) that are given on the command line or in the environment apply to every family served.
"""

from __future__ import annotations

from clover.settings.check import check, parse_cores
from clover.settings.command_line import Option
from clover.settings.load import Settings, load, override
from clover.settings.render import help_text, print_config
from clover.settings.schema import SETTINGS, Setting
from clover.settings.secrets import holds_secrets, secrets_of

__all__ = [
    "SETTINGS",
    "Option",
    "Setting",
    "Settings",
    "check",
    "help_text",
    "holds_secrets",
    "load",
    "override",
    "parse_cores",
    "print_config",
    "secrets_of",
]
