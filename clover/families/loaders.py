"""Calling the Python of a family.

Loaders are "module:function" strings, resolved only where they run.  If the family's folder holds that module
(`model:load` -> `model.py`), it is imported from there as a submodule of a private package whose name is derived from
the folder and its Python files.  So two families may both have a `model.py`, files of a folder may import each other
relatively (`from . import layers`), and an edited folder is read afresh.  Otherwise the module is imported by name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from clover.digests import open_at_once
from clover.errors import ConfigError
from clover.families.declaration import LOADER
from clover.families.digest import python_files
from clover.families.manifest import check_source
from clover.hints import did_you_mean, search_here
from clover.types import FamilySpec

_PACKAGE = "_clover_family_"


def resolve(loader: str, folder: str | Path) -> Callable[..., Any]:
    """Return the function that "module:function" names: from `folder` if that holds the module, otherwise by import.

    Importing runs the module's top level.  Raises ConfigError if there is no such module or function, or the module
    calls `sys.exit`; what else the module itself raises is passed on.
    """
    if not LOADER.fullmatch(loader):
        raise ConfigError(f"loader {loader!r} is not of the form module:function")
    name, _, attribute = loader.partition(":")
    full_name = f"{_package_of(Path(folder).resolve())}.{name}" if _file_inside(name, folder) else name
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (full_name == error.name or full_name.startswith(error.name + ".")):
            raise
        raise ConfigError(f"loader {loader!r}: no module {name} in the family's folder, nor to import") from error
    except SystemExit as error:
        raise ConfigError(f"loader {loader!r}: module {name} cannot be imported: {describe_failure(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        hint = did_you_mean(attribute, [key for key in vars(module) if not key.startswith("_")])
        raise ConfigError(f"loader {loader!r}: module {name} has no function {attribute}{hint}")
    found: Callable[..., Any] = function
    return found


def describe_failure(error: BaseException) -> str:
    """Return what went wrong in the Python of a family, for a message; `sys.exit` is an error as any other."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def check_loaders(spec: FamilySpec) -> None:
    """Raise ConfigError if the module of a loader cannot be found.

    Nothing is imported: whether the module runs, and has the function, the worker finds out.
    """
    loaders = {f"variant {variant.name}": variant.loader for variant in spec.variants}
    if spec.evaluation is not None:
        loaders["evaluation"] = spec.evaluation.loader
        if ":" in spec.evaluation.metric:
            loaders["metric"] = spec.evaluation.metric
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
    """Return whether a module of that name can be imported, without importing anything."""
    # Not by `importlib.util.find_spec`, which imports the packages above the module.
    search_here(name)
    place: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full_name = ".".join(parts[:depth])
        finders = (finder.find_spec(full_name, place) for finder in sys.meta_path)
        spec_found = next((spec for spec in finders if spec is not None), None)
        if spec_found is None:
            return False
        place = spec_found.submodule_search_locations
        if place is None:
            return depth == len(parts)
    return True


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time.

    Cached bytecode is matched to its source by modification time in seconds and size alone; an edit may keep both.
    """

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"{path}: bytecode of a family is not cached")

    def get_data(self, path: str) -> bytes:
        """Return what is in a file; raises ConfigError if the family has a manifest that lists something else."""
        with open_at_once(path) as file:
            data = file.read()
        check_source(path, data)
        return data


class _FamilyFinder:
    """Finds modules inside the private packages that stand for family folders (an entry of `sys.meta_path`)."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None or not fullname.startswith(_PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _FreshLoader(spec.loader.name, spec.loader.path)
        return spec


def _package_of(folder: Path) -> str:
    """Return the name of the private package that stands for `folder`; make it if it is not there.

    The package has no code of its own: `__init__.py` of the folder is not run.
    """
    identity = hashlib.sha256(str(folder).encode())
    for path in python_files(folder):
        with open_at_once(path) as file:
            identity.update(file.read())
    name = f"{_PACKAGE}{identity.hexdigest()[:16]}"
    if name not in sys.modules:
        importlib.invalidate_caches()
        if _FamilyFinder not in sys.meta_path:
            sys.meta_path.insert(0, _FamilyFinder)
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name
