"""Every setting as data, read off the annotations of `clover.config` and nothing else."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import msgspec

from clover.config import SECRETS, FamilyConfig, ProviderConfig, ServerConfig, TenantConfig, TokenConfig
from clover.errors import ConfigError

FAMILY = "families"
"""The section that repeats: one table a family."""
TENANT = "tenant"
"""Another one: one table a tenant, in the file only."""
TOKEN = "token"
"""And one: one table a token, in the file only."""
PROVIDER = "carbon.provider"
"""One table a provider of carbon intensity; JSON on the command line and in the environment."""

_PREFIXED = ("batch_jobs", "embodied", "energy", "ledger", "log", "otel", "report", "rollout")
_PREFIX = {section: f"{section}_" for section in _PREFIXED}
_PREFIX["limits"] = "limit_"
_NAMED = {
    "carbon.source": "carbon",
    PROVIDER: "carbon_provider",
    "families.budget_horizon_s": "budget_horizon",
    "ledger.keep": "ledger",
    "otel.endpoint": "otel",
}
_WORDS = {"families.budget_horizon_s": {"day": 86_400.0, "week": 604_800.0}}
"""Words that may stand for numbers."""
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Setting:
    """One setting.  `hint` is its annotated type, `base` that type without None and annotation."""

    section: str
    leaf: str
    name: str
    hint: Any
    base: Any
    nullable: bool
    limits: msgspec.Meta | None
    default: Any
    help: str

    @property
    def key(self) -> str:
        """Its TOML key: "listen.port"; settings of a family read "families.slo_ms"."""
        return f"{self.section}.{self.leaf}" if self.section else self.leaf

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """Its environment variable."""
        return "CLOVER_" + self.name.upper()

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return self.leaf in SECRETS or self.key == PROVIDER

    @property
    def boolean(self) -> bool:
        """Whether its flag takes no value."""
        return self.base is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, if there is a list of them."""
        return typing.get_args(self.base) if typing.get_origin(self.base) is Literal else ()

    @property
    def metavar(self) -> str:
        """The placeholder of its value in the help."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        if typing.get_origin(self.base) is tuple:
            return "JSON" if self.key == PROVIDER else "A,B"
        return {int: "N", float: "X"}.get(self.base, self.leaf.rsplit("_", 1)[-1].upper())

    def wanted(self) -> str:
        """Return the values it takes, in words, for error messages."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.boolean:
            return "true or false"
        if self.key == PROVIDER:
            return 'tables with a name and a user, key or url, as [{"name": "neso", "url": "https://mirror"}]'
        if typing.get_origin(self.base) is tuple:
            return "a list of strings"
        words = "".join(f"{word}, " for word in _WORDS.get(self.key, ()))
        text = words + {int: "an integer", float: "a number"}.get(self.base, "a string")
        limits = self.limits
        if limits is not None:
            signs = ((limits.ge, ">="), (limits.gt, ">"), (limits.le, "<="), (limits.lt, "<"))
            text += " " + " and ".join(f"{sign} {limit:g}" for limit, sign in signs if limit is not None)
        return text.strip() + (" (or none)" if self.nullable else "")

    def convert(self, value: Any, origin: str, *, text: bool = False) -> Any:
        """Return `value` as this setting's type; `text` says that it was written as a string.  Raises ConfigError."""
        try:
            if isinstance(value, str):
                value = _WORDS.get(self.key, {}).get(value, value)
            if text and isinstance(value, str):
                value = self._from_text(value)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("not finite")
            return msgspec.convert(value, self.hint, strict=not text)
        except (ValueError, msgspec.ValidationError) as error:
            given = f" ({error})" if self.key == PROVIDER else "" if self.secret else f", not {value!r}"
            raise ConfigError(f"{origin}: {self.key} must be {self.wanted()}{given}") from None

    def _from_text(self, text: str) -> Any:
        if self.nullable and text.lower() in ("none", "null", ""):
            return None
        if self.boolean:
            lowered = text.strip().lower()
            if lowered in _TRUE | _FALSE:
                return lowered in _TRUE
            raise ValueError("not a boolean")
        if self.key == PROVIDER:
            return msgspec.json.decode(text, type=self.base)
        if typing.get_origin(self.base) is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if self.base is float and not math.isfinite(float(text)):
            raise ValueError("not finite")
        return text


def _setting(section: str, field: msgspec.structs.FieldInfo, hint: Any) -> Setting:
    base, nullable, meta = hint, False, None
    while True:
        origin = typing.get_origin(base)
        if origin is Annotated:
            base, meta = typing.get_args(base)[:2]
        elif origin in (Union, types.UnionType):
            nullable = True
            (base,) = (part for part in typing.get_args(base) if part is not type(None))
        else:
            break
    key = f"{section}.{field.name}" if section else field.name
    limits = meta if meta is not None and base in (int, float) else None
    return Setting(
        section=section,
        leaf=field.name,
        name=_NAMED.get(key, _PREFIX.get(section, "") + field.name),
        hint=hint,
        base=base,
        nullable=nullable,
        limits=limits,
        default=field.default,
        help=(meta.description or "") if meta is not None else "",
    )


def _settings_of(section: str, record: type[msgspec.Struct]) -> list[Setting]:
    hints = typing.get_type_hints(record, include_extras=True)
    return [_setting(section, field, hints[field.name]) for field in msgspec.structs.fields(record)]


def _read() -> tuple[Setting, ...]:
    found: list[Setting] = []
    top: list[Setting] = []
    hints = typing.get_type_hints(ServerConfig, include_extras=True)
    for field in msgspec.structs.fields(ServerConfig):
        hint = hints[field.name]
        if field.name == FAMILY:
            found += _settings_of(FAMILY, FamilyConfig)
        elif field.name in ("tenants", "tokens", "secret_files"):
            continue
        elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            found += _settings_of(field.name, hint)
        else:
            top.append(_setting("", field, hint))
    return tuple(found + top)


SETTINGS: tuple[Setting, ...] = _read()
"""All settings in the order of the records, those of no section last."""

TABLES: dict[str, dict[str, Setting]] = {
    kind: {setting.leaf: setting for setting in _settings_of(kind, record)}
    for kind, record in ((PROVIDER, ProviderConfig), (TENANT, TenantConfig), (TOKEN, TokenConfig))
}
"""By table that repeats, its settings by key.  They have neither flags nor variables."""

BY_KEY = {setting.key: setting for setting in SETTINGS}
ENTRY = BY_KEY[f"{FAMILY}.family"]
"""What names a family: the positional arguments, never a flag."""
FLAGS = {setting.flag: setting for setting in SETTINGS if setting is not ENTRY}
VARIABLES = {setting.env: setting for setting in SETTINGS if setting is not ENTRY}
SECTIONS = tuple(dict.fromkeys(setting.section for setting in SETTINGS))
