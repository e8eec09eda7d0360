"""The tables of settings in docs/configuration.md.

python -m tests.support.settings_table
"""

from __future__ import annotations

import msgspec

from clover.config import ServerConfig
from clover.settings.render import _TITLES, _of, _plain
from clover.settings.schema import ENTRY, FAMILY, SECTIONS, TABLES


def markdown_table() -> str:
    """Return one table a section."""
    parts = []
    for section in (*_TITLES, *(name for name in SECTIONS if name not in _TITLES)):
        heading = {"": "Top level", FAMILY: "`[[families]]`"}.get(section, f"`[{section}]`")
        parts += [f"## {heading}", "", "| key | flag | default | meaning |", "|---|---|---|---|"]
        for setting in _of(section):
            default = _plain(setting.default) if setting is not ENTRY else _plain(ServerConfig().families[0].family)
            flag = "positional" if setting is ENTRY else f"`{setting.flag}`"
            meaning = setting.help.replace("|", "\\|")
            shown = f"`{default}`" if default else ""
            wanted = f" ({setting.wanted()})" if setting.choices or setting.limits is not None else ""
            parts.append(f"| `{setting.leaf}` | {flag} | {shown} | {meaning}{wanted} |")
        parts.append("")
    for kind, known in TABLES.items():
        parts += [f"## `[[{kind}]]`", "", "| key | default | meaning |", "|---|---|---|"]
        for setting in known.values():
            default = _plain(setting.default) if setting.default is not msgspec.NODEFAULT else ""
            shown = f"`{default}`" if default else ""
            wanted = f" ({setting.wanted()})" if setting.limits is not None else ""
            parts.append(f"| `{setting.leaf}` | {shown} | {setting.help}{wanted} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown_table())
