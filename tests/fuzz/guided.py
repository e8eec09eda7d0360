"""One target under atheris (libFuzzer), guided by the branches of the product's source: started by `tests.fuzz`.

    python -m tests.fuzz.guided TARGET [libFuzzer's options] [folders of inputs]

Compiled modules run as source here, since only bytecode can be instrumented; the inputs that are found go through the
compiled form afterwards (`python -m tests.fuzz.replay`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

import atheris

from tests.conftest import Sources
from tests.fuzz.engine import load


class InstrumentedSources(Sources):
    """Finds modules by their source, those of `prefixes` instrumented."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self._prefixes = prefixes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target)
        if not any(fullname == one or fullname.startswith(f"{one}.") for one in self._prefixes):
            return spec
        spec = spec or PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            loader = atheris.import_hook.AtherisSourceFileLoader(spec.loader.name, spec.loader.path, True)
            spec.loader = loader
        return spec


def main() -> None:
    name = sys.argv.pop(1)
    prefixes = _prefixes(name)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Sources)]
    sys.meta_path.insert(0, InstrumentedSources(prefixes))
    target = load(name)
    atheris.Setup(sys.argv, lambda data: _checked(target.check, data), enable_python_coverage=True)
    atheris.Fuzz()


def _checked(check: object, data: bytes) -> None:
    check(data)  # type: ignore[operator]


def _prefixes(name: str) -> tuple[str, ...]:
    """Read INSTRUMENTED of a target without importing it, which would import the product."""
    import ast

    text = (Path(__file__).parent / "targets" / f"{name}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "INSTRUMENTED":
            return tuple(ast.literal_eval(node.value))
    raise LookupError(f"{name} names nothing to instrument")


if __name__ == "__main__":
    os.environ["CLOVER_SOURCE"] = "1"
    main()
