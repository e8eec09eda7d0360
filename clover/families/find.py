"""Finding a family, and reading its declaration.

A family is named in one of three ways, tried in this order:

- a shipped name (`fashion`): a folder of the package `clover.models`, or of `models/` in a source checkout;
- a folder that holds `family.toml` and the Python it names;
- `module:attribute`: an importable `FamilySpec`, or a function without arguments that returns one.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from clover.cache import expanded
from clover.digests import open_at_once
from clover.errors import ConfigError
from clover.families.declaration import COMPUTED, COMPUTED_OF_VARIANTS, FILE, LOADER, NAME
from clover.families.digest import digest
from clover.families.loaders import describe_failure
from clover.families.manifest import check as check_files
from clover.families.manifest import check_source
from clover.families.published import with_untrained
from clover.families.validate import check, check_precisions, check_sent
from clover.hints import did_you_mean, printable, search_here
from clover.malformed import MALFORMED
from clover.steps import with_steps
from clover.types import (
    ConfidenceSpec,
    EvaluationSpec,
    FamilySpec,
    OpenAiSpec,
    PublishedAccuracy,
    PublishedWeights,
    StepsSpec,
    TensorSpec,
    VariantSpec,
)

# The tables of family.toml, by the key they stand under; what is missing here holds plain values or free keys.
_TABLES: dict[type[msgspec.Struct], dict[str, type[msgspec.Struct]]] = {
    FamilySpec: {
        "inputs": TensorSpec,
        "outputs": TensorSpec,
        "variants": VariantSpec,
        "evaluation": EvaluationSpec,
        "confidence": ConfidenceSpec,
        "steps": StepsSpec,
        "openai": OpenAiSpec,
    },
    StepsSpec: {"inputs": TensorSpec, "outputs": TensorSpec},
    VariantSpec: {"accuracy": PublishedAccuracy, "published": PublishedWeights},
}


def shipped() -> list[str]:
    """Return the names of the families that come with Clover, sorted.  Raises ConfigError if they are not installed."""
    return sorted(path.parent.name for path in _models_folder().glob(f"*/{FILE}"))


def load_family(ref: str | FamilySpec) -> FamilySpec:
    """Return the checked family that `ref` names, with `folder` (absolute) and `digest` filled in.

    A `FamilySpec` made in Python is checked and completed the same way.  Raises ConfigError, naming file and key.
    """
    if isinstance(ref, FamilySpec):
        return _complete(ref, Path(ref.folder).resolve() if ref.folder else None, f"family {ref.name!r}")
    if NAME.fullmatch(ref) and not ref.startswith(".") and ref in (names := _shipped_or_empty()):
        return _read(names[ref])
    path = expanded(ref)
    if path.name == FILE and path.is_file():
        path = path.parent
    if path.is_dir():
        return _read(path)
    if LOADER.fullmatch(ref):
        return _import_family(ref)
    raise ConfigError(_not_found(ref))


def chosen(spec: FamilySpec, names: Sequence[str]) -> FamilySpec:
    """Return a family as if it had no variants but those of `names`, in its own order; itself if there are no names.

    Raises ConfigError for a variant that it does not have.
    """
    there = [variant.name for variant in spec.variants]
    for name in names:
        if name not in there:
            raise ConfigError(f"family {spec.name!r} has no variant {name!r}; it has {', '.join(there)}")
    kept = tuple(variant for variant in spec.variants if variant.name in names)
    if not names or kept == spec.variants:
        return spec
    alone = msgspec.structs.replace(spec, variants=kept, digest="")
    return msgspec.structs.replace(alone, digest=digest(alone, kept))


def reference(spec: FamilySpec) -> str:
    """Return the name of `spec` on a command line: its shipped name or its folder, quoted for a shell.

    A family made in Python has no name of its own there: MODULE:ATTRIBUTE stands for what the reader typed.
    """
    folder = Path(spec.folder)
    if not spec.folder or not (folder / FILE).is_file():
        return "MODULE:ATTRIBUTE"
    return next((name for name, path in _shipped_or_empty().items() if path == folder), shlex.quote(spec.folder))


def _models_folder() -> Path:
    """Return the folder of shipped families: the installed package `clover.models`, or `models/` beside `clover/`.

    Raises ConfigError if neither is there.
    """
    candidates: list[Path] = []
    spec = importlib.util.find_spec("clover.models")
    if spec is not None and spec.submodule_search_locations is not None:
        candidates.extend(Path(place) for place in spec.submodule_search_locations)
    candidates.append(Path(__file__).resolve().parents[2] / "models")
    for folder in candidates:
        if any(folder.glob(f"*/{FILE}")):
            return folder.resolve()
    raise ConfigError("the families that come with Clover are not installed (package clover.models): reinstall Clover")


def _shipped_or_empty() -> dict[str, Path]:
    try:
        folder = _models_folder()
    except ConfigError:
        return {}
    return {path.parent.name: path.parent for path in folder.glob(f"*/{FILE}")}


def _not_found(ref: str) -> str:
    """Return the error text for a family that does not exist, with the names that do."""
    names = sorted(_shipped_or_empty())
    listed = f"shipped families: {', '.join(names)}" if names else "no shipped families are installed"
    return f"no family {ref!r}{did_you_mean(ref, names)}: give a shipped name, a folder, or module:attribute ({listed})"


def _read(folder: Path) -> FamilySpec:
    """Return the checked family that `folder` declares."""
    file = folder / FILE
    try:
        with open_at_once(file) as opened:
            data = opened.read()
        table = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}): a family is a folder with {FILE}") from error
    except MALFORMED as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    _refuse_unknown(table, FamilySpec, "", str(file))
    for key in COMPUTED:
        if key in table:
            raise ConfigError(f"{file}: {key}: is filled in by Clover, remove it")
    for index, row in enumerate(table.get("variants", ())):
        for key in COMPUTED_OF_VARIANTS:
            if isinstance(row, dict) and key in row:
                text = "is filled in by Clover, remove it (the models of a family take what its [[inputs]] say)"
                raise ConfigError(f"{file}: variants[{index}].{key}: {text}")
    check_precisions(table.get("variants"), str(file))
    try:
        spec = msgspec.convert(table, FamilySpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_readable(str(error))}") from error
    completed = _complete(spec, folder.resolve(), str(file))
    check_source(str(folder.resolve() / FILE), data)
    return completed


def _import_family(ref: str) -> FamilySpec:
    """Return the checked family of "module:attribute"; its folder is that of the module, if it names none."""
    name, _, attribute = ref.partition(":")
    search_here(name)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"family {ref!r}: module {name} cannot be imported: {describe_failure(error)}") from error
    value = getattr(module, attribute, None)
    if value is None:
        raise ConfigError(f"family {ref!r}: module {name} has no {attribute}{did_you_mean(attribute, dir(module))}")
    if callable(value):
        try:
            value = value()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"family {ref!r}: {attribute} of module {name} failed: {describe_failure(error)}"
            ) from error
    if not isinstance(value, FamilySpec):
        raise ConfigError(f"family {ref!r}: is a {type(value).__name__}, not a FamilySpec or a function returning one")
    if value.folder:
        return _complete(value, Path(value.folder).resolve(), f"family {ref!r}")
    source = getattr(module, "__file__", None)
    return _complete(value, Path(source).resolve().parent if source else None, f"family {ref!r}")


def _complete(spec: FamilySpec, folder: Path | None, where: str) -> FamilySpec:
    """Check `spec` and fill in its folder and digest; `folder` is None for a family without files of its own."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{where}: folder: {folder} is not a folder")
    check(spec, folder, where)
    try:
        checked = check_files(folder) if folder is not None else None
        try:
            spec = with_untrained(with_steps(spec, folder))
        except ConfigError as error:
            raise ConfigError(f"{where}: {printable(str(error))}") from error
        check_sent(spec, where)
        manifest = checked.manifest if checked is not None else ""
        completed = msgspec.structs.replace(spec, folder=str(folder) if folder else "", digest="", manifest=manifest)
        return msgspec.structs.replace(completed, digest=digest(completed, completed.variants))
    except OSError as error:
        raise ConfigError(f"{where}: {error.filename} cannot be read ({error.strerror})") from error


def _readable(message: str) -> str:
    """Return msgspec's "Expected `int`, got `str` - at `$.max_batch`" as "max_batch: expected `int`, got `str`"."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").removeprefix(".")
    return f"{key}: {text[0].lower()}{text[1:]}" if key else text[0].lower() + text[1:]


def _refuse_unknown(table: dict[str, Any], record: type[msgspec.Struct], path: str, where: str) -> None:
    """Raise ConfigError for the first key of `table`, or of a table in it, that `record` has no field for.

    `path` leads to `table` ("variants[0]."), `where` is the file.
    """
    fields = [field.encode_name for field in msgspec.structs.fields(record)]
    for key, value in table.items():
        if key not in fields:
            offered = [name for name in fields if name not in (*COMPUTED, *COMPUTED_OF_VARIANTS)]
            raise ConfigError(f"{where}: {path}{key}: unknown key{did_you_mean(key, offered)}")
        below = _TABLES.get(record, {}).get(key)
        if below is None:
            continue
        rows = value if isinstance(value, list) else [value]
        for index, row in enumerate(rows):
            if isinstance(row, dict):
                place = f"{path}{key}[{index}]." if isinstance(value, list) else f"{path}{key}."
                _refuse_unknown(row, below, place, where)
