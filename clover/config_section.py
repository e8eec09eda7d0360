"""What every group of settings is made of (`clover.config`)."""

from __future__ import annotations

from typing import Any

import msgspec


def described(text: str, **limits: float) -> Any:
    """Describe a setting by one line of help and its range (ge, gt, le, lt); `clover.settings` enforces and prints
    both."""
    return msgspec.Meta(description=text, **limits)  # type: ignore[call-overload]


SECRETS = frozenset({"token", "token_sha256", "key"})
"""Settings whose values are never shown."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every group of settings."""

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        shown = (f"{name}={'***' if name in SECRETS and value else repr(value)}" for name, value in fields.items())
        return f"{type(self).__name__}({', '.join(shown)})"
