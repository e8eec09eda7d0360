"""Families: finding them, reading `family.toml`, checking it, and calling the Python beside it.

A family is named in one of three ways, tried in this order:

- a shipped name (`fashion`): a folder of the package `clover.models`, or of `models/` in a source checkout;
- a folder that holds `family.toml` and the Python it names;
- `module:attribute`: an importable `FamilySpec`, or a function without arguments that returns one.

`family.toml` maps key by key onto `types.FamilySpec`; every error names the file and the key.

Loaders are "module:function" strings, resolved only where they run.  If the family's folder holds that module
(`model:load` -> `model.py`), it is imported from there as a submodule of a private package whose name is derived from
the folder and its Python files.  So two families may both have a `model.py`, files of a folder may import each other
relatively (`from . import layers`), and an edited folder is read afresh.  Otherwise the module is imported by name.

The server reads families and their evaluation rows but never torch: a loader of evaluation rows that imports it is
refused.  Torch belongs to the workers, which call `resolve` on the loaders of variants.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.digests import sha256_of
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.types import (
    ConfidenceSpec,
    EvaluationSpec,
    FamilySpec,
    Precision,
    PublishedAccuracy,
    TensorSpec,
    VariantSpec,
)

FILE = "family.toml"
SPLITS = ("calibration", "held_out")
CONFIDENCES = ("top", "margin", "entropy")
PRECISIONS: tuple[str, ...] = get_args(Precision)
MAX_RANK = 8

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The Open Inference Protocol's datatypes and the arrays that hold them.  BF16 travels as its 16 bits; BYTES as an
object array of `bytes`."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOADER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_COMPUTED = ("folder", "digest")
_PACKAGE = "_clover_family_"

# The tables of family.toml, by the key they stand under; what is missing here holds plain values or free keys.
_TABLES: dict[type[msgspec.Struct], dict[str, type[msgspec.Struct]]] = {
    FamilySpec: {
        "inputs": TensorSpec,
        "outputs": TensorSpec,
        "variants": VariantSpec,
        "evaluation": EvaluationSpec,
        "confidence": ConfidenceSpec,
    },
    VariantSpec: {"accuracy": PublishedAccuracy},
}


# --- finding and reading ----------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """Return names of the families that come with Clover, sorted; raises ConfigError if they are not installed."""
    return sorted(path.parent.name for path in _models_folder().glob(f"*/{FILE}"))


def load_family(ref: str | FamilySpec) -> FamilySpec:
    """Return the checked family `ref` names, with `folder` (absolute) and `digest` filled in.

    A `FamilySpec` made in Python is checked and completed the same way.  Raises ConfigError, naming file and key.
    """
    if isinstance(ref, FamilySpec):
        return _complete(ref, Path(ref.folder).resolve() if ref.folder else None, f"family {ref.name!r}")
    if _NAME.fullmatch(ref) and not ref.startswith(".") and ref in (names := _shipped_or_empty()):
        return _read(names[ref])
    path = Path(ref).expanduser()
    if path.name == FILE and path.is_file():
        path = path.parent
    if path.is_dir():
        return _read(path)
    if _LOADER.fullmatch(ref):
        return _imported(ref)
    raise ConfigError(_not_found(ref))


def reference(spec: FamilySpec) -> str:
    """Return what names `spec` on a command line: its shipped name or its folder, quoted for a shell.  A family made in
    Python has no name of its own there: MODULE:ATTRIBUTE stands for what the reader typed."""
    folder = Path(spec.folder)
    if not spec.folder or not (folder / FILE).is_file():
        return "MODULE:ATTRIBUTE"
    return next((name for name, path in _shipped_or_empty().items() if path == folder), shlex.quote(spec.folder))


def _models_folder() -> Path:
    """Return the folder of shipped families: the installed package `clover.models`, or `models/` beside `clover/`."""
    candidates: list[Path] = []
    found = importlib.util.find_spec("clover.models")
    if found is not None and found.submodule_search_locations is not None:
        candidates.extend(Path(place) for place in found.submodule_search_locations)
    candidates.append(Path(__file__).resolve().parent.parent / "models")
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
    names = sorted(_shipped_or_empty())
    known = f"shipped families: {', '.join(names)}" if names else "no shipped families are installed"
    return f"no family {ref!r}{did_you_mean(ref, names)}: give a shipped name, a folder, or module:attribute ({known})"


def _read(folder: Path) -> FamilySpec:
    file = folder / FILE
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}): a family is a folder with {FILE}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    _refuse_unknown(table, FamilySpec, "", str(file))
    for key in _COMPUTED:
        if key in table:
            raise ConfigError(f"{file}: {key}: is filled in by Clover, remove it")
    _check_precisions(table.get("variants"), str(file))
    try:
        spec = msgspec.convert(table, FamilySpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_readable(str(error))}") from error
    return _complete(spec, folder.resolve(), str(file))


def _imported(ref: str) -> FamilySpec:
    name, _, attribute = ref.partition(":")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"family {ref!r}: module {name} cannot be imported: {error}") from error
    value = getattr(module, attribute, None)
    if value is None:
        raise ConfigError(f"family {ref!r}: module {name} has no {attribute}{did_you_mean(attribute, dir(module))}")
    if callable(value):
        value = value()
    if not isinstance(value, FamilySpec):
        raise ConfigError(f"family {ref!r}: is a {type(value).__name__}, not a FamilySpec or a function returning one")
    if value.folder:
        return _complete(value, Path(value.folder).resolve(), f"family {ref!r}")
    source = getattr(module, "__file__", None)
    return _complete(value, Path(source).resolve().parent if source else None, f"family {ref!r}")


def _complete(spec: FamilySpec, folder: Path | None, where: str) -> FamilySpec:
    """Check `spec` and fill in folder and digest.  `folder` None: a family without files of its own."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{where}: folder: {folder} is not a folder")
    _check(spec, folder, where)
    completed = msgspec.structs.replace(spec, folder=str(folder) if folder else "", digest="")
    return msgspec.structs.replace(completed, digest=_digest(completed, completed.variants))


# --- messages ---------------------------------------------------------------------------------------------------------


def _readable(message: str) -> str:
    """Return msgspec's "Expected `int`, got `str` - at `$.max_batch`" as "max_batch: expected `int`, got `str`"."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").removeprefix(".")
    return f"{key}: {text[0].lower()}{text[1:]}" if key else text[0].lower() + text[1:]


def _refuse_unknown(table: dict[str, Any], record: type[msgspec.Struct], path: str, where: str) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(record)]
    for key, value in table.items():
        if key not in known:
            offered = [name for name in known if name not in _COMPUTED]
            raise ConfigError(f"{where}: {path}{key}: unknown key{did_you_mean(key, offered)}")
        below = _TABLES.get(record, {}).get(key)
        if below is None:
            continue
        rows = value if isinstance(value, list) else [value]
        for index, row in enumerate(rows):
            if isinstance(row, dict):
                place = f"{path}{key}[{index}]." if isinstance(value, list) else f"{path}{key}."
                _refuse_unknown(row, below, place, where)


# --- checking ---------------------------------------------------------------------------------------------------------


def _check(spec: FamilySpec, folder: Path | None, where: str) -> None:
    def refuse(key: str, message: str) -> ConfigError:
        return ConfigError(f"{where}: {key}: {message}")

    _check_name(spec.name, "name", where)
    _check_name(spec.version, "version", where)
    if not 1 <= spec.max_batch <= 4096:
        raise refuse("max_batch", f"{spec.max_batch} is not within 1..4096")
    for key, names in (
        ("inputs", [tensor.name for tensor in spec.inputs]),
        ("outputs", [tensor.name for tensor in spec.outputs]),
        ("variants", [variant.name for variant in spec.variants]),
    ):
        if not names:
            raise refuse(key, "at least one is needed")
        for index, name in enumerate(names):
            _check_name(name, f"{key}[{index}].name", where)
            if name in names[:index]:
                raise refuse(f"{key}[{index}].name", f"{name!r} is there twice")
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        for index, tensor in enumerate(tensors):
            if tensor.labels and key == "inputs":
                raise refuse(f"inputs[{index}].labels", "only outputs have labels")
            _check_tensor(tensor, f"{key}[{index}]", where)
    for index, variant in enumerate(spec.variants):
        key = f"variants[{index}]"
        _check_name(variant.version, f"{key}.version", where)
        _check_loader(variant.loader, f"{key}.loader", where)
        if variant.weights:
            _check_weights(variant.weights, folder, f"{key}.weights", where)
        _check_precision(variant.precision, f"{key}.precision", where)
        if variant.kind == "python" and variant.precision != "fp32":
            raise refuse(f"{key}.precision", "belongs to torch variants: a python one computes as its function does")
        if variant.accuracy is not None and not 0 <= variant.accuracy.value <= 100:
            raise refuse(f"{key}.accuracy.value", f"{variant.accuracy.value} is not a percentage")
    if spec.evaluation is not None:
        _check_loader(spec.evaluation.loader, "evaluation.loader", where)
        if spec.evaluation.metric != "top1":
            raise refuse("evaluation.metric", f"{spec.evaluation.metric!r} is unknown: it is 'top1'")
    if spec.confidence is not None:
        _check_confidence(spec, spec.confidence, where)


def _check_confidence(spec: FamilySpec, confidence: ConfidenceSpec, where: str) -> None:
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    if confidence.output and confidence.output not in outputs:
        hint = did_you_mean(confidence.output, outputs)
        raise ConfigError(f"{where}: confidence.output: there is no output {confidence.output!r}{hint}")
    if ":" in confidence.kind:
        return _check_loader(confidence.kind, "confidence.kind", where)
    if confidence.kind not in CONFIDENCES:
        hint = did_you_mean(confidence.kind, CONFIDENCES)
        known = f"{', '.join(CONFIDENCES)}, or module:function"
        raise ConfigError(f"{where}: confidence.kind: {confidence.kind!r} is unknown{hint}: it is {known}")
    tensor = outputs[confidence.output] if confidence.output else spec.outputs[0]
    if DATATYPES.get(tensor.datatype, np.dtype(np.uint8)).kind != "f" or int(np.prod(tensor.bound)) < 2:
        text = f"{confidence.kind!r} needs several floating-point numbers a row, which {tensor.name!r} does not hold"
        raise ConfigError(f"{where}: confidence.kind: {text}: name another output, or a function of your own")
    return None


def _check_name(name: str, key: str, where: str) -> None:
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(f"{where}: {key}: {name!r} is not 1 to 128 of the characters A-Z a-z 0-9 . _ -")


def _check_loader(loader: str, key: str, where: str) -> None:
    if not _LOADER.fullmatch(loader):
        raise ConfigError(f"{where}: {key}: {loader!r} is not of the form module:function")


def _check_precisions(variants: Any, where: str) -> None:
    """The precisions of a table just read, before it is converted: a wrong one is answered with those there are."""
    for index, row in enumerate(variants if isinstance(variants, list) else []):
        if isinstance(row, dict) and "precision" in row:
            _check_precision(row["precision"], f"variants[{index}].precision", where)


def _check_precision(precision: Any, key: str, where: str) -> None:
    if precision not in PRECISIONS:
        hint = did_you_mean(str(precision).lower(), PRECISIONS)
        raise ConfigError(f"{where}: {key}: {precision!r} is unknown{hint}: it is one of {', '.join(PRECISIONS)}")


def _check_tensor(tensor: TensorSpec, key: str, where: str) -> None:
    def refuse(field: str, message: str) -> ConfigError:
        return ConfigError(f"{where}: {key}.{field}: {message}")

    if tensor.datatype not in DATATYPES:
        hint = did_you_mean(tensor.datatype.upper(), DATATYPES)
        raise refuse("datatype", f"{tensor.datatype!r} is unknown{hint}: it is one of {', '.join(DATATYPES)}")
    if len(tensor.shape) > MAX_RANK - 1:
        raise refuse("shape", f"has {len(tensor.shape)} axes; with the batch axis at most {MAX_RANK} are allowed")
    if any(axis < 1 and axis != -1 for axis in tensor.shape):
        raise refuse("shape", f"{list(tensor.shape)}: an axis is positive, or -1 where it varies")
    if tensor.variable and not tensor.max_shape:
        raise refuse("max_shape", "is needed where shape has a variable axis: it bounds every axis")
    if tensor.max_shape:
        bounds = zip(tensor.shape, tensor.max_shape, strict=False)
        if len(tensor.max_shape) != len(tensor.shape) or any(b < 1 or a not in (-1, b) for a, b in bounds):
            message = f"{list(tensor.max_shape)} does not bound {list(tensor.shape)} axis by axis"
            raise refuse("max_shape", message)
    elements = int(np.prod(tensor.bound, dtype=object))
    if tensor.datatype == "BYTES":
        least = 4 * elements
        if tensor.max_bytes < least:
            raise refuse("max_bytes", f"a row of {elements} elements takes at least {least} bytes: 4 each, and text")
    elif tensor.max_bytes:
        raise refuse("max_bytes", "belongs to BYTES tensors only")
    if tensor.labels and len(tensor.labels) != elements:
        raise refuse("labels", f"{len(tensor.labels)} labels for {elements} values")


def _check_weights(weights: str, folder: Path | None, key: str, where: str) -> None:
    relative = PurePosixPath(weights)
    if folder is None:
        raise ConfigError(f"{where}: {key}: a family without a folder has no weight files")
    if relative.is_absolute() or ".." in relative.parts or "\0" in weights or "\\" in weights:
        raise ConfigError(f"{where}: {key}: {weights!r} must be a path below the family's folder, without '..'")
    path = folder / relative
    if not path.is_file():
        raise ConfigError(f"{where}: {key}: no file {weights!r} in the family's folder")
    if not path.resolve().is_relative_to(folder):
        raise ConfigError(f"{where}: {key}: {weights!r} is a link that leaves the family's folder")


# --- digests ----------------------------------------------------------------------------------------------------------


def _python_files(folder: Path) -> list[Path]:
    """Return the Python a family consists of: all below its folder; only its own level where no `family.toml` marks the
    root (a spec in a module may stand amid a whole project)."""
    pattern = "**/*.py" if (folder / FILE).is_file() else "*.py"
    return sorted(path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)


def _digest(spec: FamilySpec, variants: tuple[VariantSpec, ...]) -> str:
    """Return sha256 over the declaration, the Python files and the weights of `variants`; independent of where they
    lie."""
    declared = msgspec.to_builtins(msgspec.structs.replace(spec, folder="", digest=""))
    if spec.confidence is None:
        del declared["confidence"]  # so that what was compiled before there were cascades stays valid
    total = hashlib.sha256(msgspec.json.encode(declared, order="sorted"))
    if spec.folder:
        folder = Path(spec.folder)
        files = [*_python_files(folder), *(folder / variant.weights for variant in variants if variant.weights)]
        declaration = folder / FILE
        if declaration.is_file() and variants == spec.variants:
            files.append(declaration)
        for path in files:
            total.update(f"\n{path.relative_to(folder).as_posix()} {sha256_of(path)}".encode())
    return total.hexdigest()


def digest_of_variant(spec: FamilySpec, variant: str | VariantSpec) -> str:
    """Return sha256 over what a compiled artifact of one variant depends on: its declaration, the family's tensors and
    batch limit, the Python files, and its own weights.  Another variant's weights or accuracy do not change it.

    Raises KeyError for a name the family does not have.
    """
    chosen = spec.variant(variant) if isinstance(variant, str) else variant
    return _digest_alone(spec, msgspec.structs.replace(chosen, accuracy=None))


def structure_of_variant(spec: FamilySpec, variant: str | VariantSpec) -> str:
    """`digest_of_variant` less the weights and the version: two digests of one structure differ in numbers only."""
    chosen = spec.variant(variant) if isinstance(variant, str) else variant
    return _digest_alone(spec, msgspec.structs.replace(chosen, accuracy=None, weights="", version=""))


def _digest_alone(spec: FamilySpec, chosen: VariantSpec) -> str:
    alone = msgspec.structs.replace(spec, variants=(), evaluation=None, confidence=None, description="", licence="")
    total = hashlib.sha256(_digest(alone, (chosen,)).encode())
    total.update(msgspec.json.encode(chosen, order="sorted"))
    return total.hexdigest()


# --- loaders ----------------------------------------------------------------------------------------------------------


def resolve(loader: str, folder: str | Path) -> Callable[..., Any]:
    """Return the function "module:function" names: from `folder` if that holds the module, otherwise by import.

    Runs the module's top level.  Raises ConfigError where there is no such module or function; what the module itself
    raises passes through.
    """
    if not _LOADER.fullmatch(loader):
        raise ConfigError(f"loader {loader!r} is not of the form module:function")
    name, _, attribute = loader.partition(":")
    full_name = f"{_package_of(Path(folder).resolve())}.{name}" if _file_inside(name, folder) else name
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (full_name == error.name or full_name.startswith(error.name + ".")):
            raise
        raise ConfigError(f"loader {loader!r}: no module {name} in the family's folder, nor to import") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        hint = did_you_mean(attribute, [key for key in vars(module) if not key.startswith("_")])
        raise ConfigError(f"loader {loader!r}: module {name} has no function {attribute}{hint}")
    return function  # type: ignore[no-any-return]


def check_loaders(spec: FamilySpec) -> None:
    """Raises ConfigError where the module of a loader is not to be found.  Nothing is imported: whether the module
    runs, and has the function, shows in the worker."""
    loaders = {f"variant {variant.name}": variant.loader for variant in spec.variants}
    if spec.evaluation is not None:
        loaders["evaluation"] = spec.evaluation.loader
    if spec.confidence is not None and ":" in spec.confidence.kind:
        loaders["confidence"] = spec.confidence.kind
    for whose, loader in loaders.items():
        name = loader.partition(":")[0]
        if not (_file_inside(name, spec.folder) or _findable(name)):
            nowhere = f"no module {name} in the family's folder, nor to import"
            raise ConfigError(f"family {spec.name!r}: {whose}: loader {loader!r}: {nowhere}")


def _file_inside(name: str, folder: str | Path) -> bool:
    """Return whether the family's folder holds the module `name`."""
    return bool(str(folder)) and (Path(folder) / name.replace(".", "/")).with_suffix(".py").is_file()


def _findable(name: str) -> bool:
    """Return whether a module of that name is there.  `importlib.util.find_spec` would import the packages above it."""
    place: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full_name = ".".join(parts[:depth])
        finders = (finder.find_spec(full_name, place) for finder in sys.meta_path)
        found = next((spec for spec in finders if spec is not None), None)
        if found is None:
            return False
        place = found.submodule_search_locations
        if place is None:
            return depth == len(parts)
    return True


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time.  Cached bytecode is matched to its source by second and size alone, and an edit
    may keep both."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"{path}: bytecode of a family is not cached")


class _FamilyFinder:
    """Finds modules inside the private packages that stand for family folders."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None or not fullname.startswith(_PACKAGE):
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, importlib.machinery.SourceFileLoader):
            found.loader = _FreshLoader(found.loader.name, found.loader.path)
        return found


def _package_of(folder: Path) -> str:
    """Return the name of the private package that stands for `folder`; it has no code of its own: `__init__.py` is not
    run."""
    identity = hashlib.sha256(str(folder).encode())
    for path in _python_files(folder):
        identity.update(path.read_bytes())
    name = f"{_PACKAGE}{identity.hexdigest()[:16]}"
    if name not in sys.modules:
        importlib.invalidate_caches()
        if _FamilyFinder not in sys.meta_path:
            sys.meta_path.insert(0, _FamilyFinder)
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def load_evaluation(spec: FamilySpec, split: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Return the labelled rows of `split` ("calibration" or "held_out"): one array per input, leading row axis, and
    labels.

    Raises ConfigError where the family has none, where what its loader returns does not match the declaration, or
    where the loader imports torch.
    """
    if spec.evaluation is None:
        raise ConfigError(f"family {spec.name!r} has no evaluation set: add [evaluation] to its {FILE}")
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: it is one of {', '.join(SPLITS)}")
    where = f"family {spec.name!r}: evaluation loader {spec.evaluation.loader!r}"
    had_torch = "torch" in sys.modules
    inputs, labels = resolve(spec.evaluation.loader, spec.folder)(Path(spec.folder), split)
    if not had_torch and "torch" in sys.modules:
        raise ConfigError(
            f"{where}: imports torch, which the server must not: keep it in a module that only needs NumPy"
        )
    arrays, truth = [np.asarray(array) for array in inputs], np.asarray(labels)
    if len(arrays) != len(spec.inputs):
        raise ConfigError(f"{where}: gave {len(arrays)} arrays for {len(spec.inputs)} inputs")
    if truth.ndim == 0 or len(truth) == 0:
        raise ConfigError(f"{where}: gave no labels")
    for tensor, array in zip(spec.inputs, arrays, strict=True):
        _check_rows(tensor, array, len(truth), where)
    return arrays, truth


def _check_rows(tensor: TensorSpec, array: NDArray[Any], rows: int, where: str) -> None:
    if array.dtype != DATATYPES[tensor.datatype]:
        expected = DATATYPES[tensor.datatype]
        raise ConfigError(f"{where}: {tensor.name}: is {array.dtype}, {tensor.datatype} is held as {expected}")
    if array.ndim == 0 or array.shape[0] != rows:
        raise ConfigError(f"{where}: {tensor.name}: shape {array.shape} does not have one row per label ({rows})")
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        axis == size or (axis == -1 and size <= most)
        for axis, size, most in zip(tensor.shape, shape, tensor.bound, strict=True)
    )
    if not fits:
        raise ConfigError(f"{where}: {tensor.name}: rows of shape {list(shape)} do not fit {list(tensor.shape)}")
