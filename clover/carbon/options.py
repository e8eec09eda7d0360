"""The options of a source, `?option=value&option=value`, read and checked."""

from __future__ import annotations

from clover.errors import ConfigError
from clover.hints import did_you_mean


def read_options(name: str, text: str) -> dict[str, str]:
    """Return the options that `text` holds for the source `name`; raises ConfigError."""
    options: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            raise ConfigError(f"carbon source {name}: options are written ?option=value&option=value, not {text!r}")
        options[key] = value
    return options


def allow(name: str, options: dict[str, str], known: tuple[str, ...]) -> None:
    """Refuse an option that is not `known` with a ConfigError."""
    for key in options:
        if key not in known:
            allowed = f"known: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"carbon source {name}: unknown option {key!r}, {allowed}{did_you_mean(key, known)}")


def one_of(name: str, options: dict[str, str], key: str, allowed: tuple[str, ...], default: str | None) -> str | None:
    """Return the value of an option that has one of a few; raises ConfigError."""
    value = options.get(key, default)
    if value is not None and value not in allowed:
        raise ConfigError(f"carbon source {name}: {key} is one of {', '.join(allowed)}, not {value!r}")
    return value
