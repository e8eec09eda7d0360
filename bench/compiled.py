"""Builds one Cython source of the benches, which is no part of the product, and imports it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

from bench.common import ROOT


def missing() -> str:
    """Return what building needs and is not there, in words."""
    names = [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]
    return f"calls from C are not timed: {' and '.join(names)} not installed (the extra dev)" if names else ""


def built(name: str) -> ModuleType:
    """Return the module of `bench/NAME.pyx`, built in a folder of its own (some seconds)."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension  # type: ignore[import-untyped]

    folder = tempfile.mkdtemp(prefix="clover-bench-")
    source = Extension(name, [str(ROOT / "bench" / f"{name}.pyx")], extra_compile_args=["-O3", "-g0"])
    modules = cythonize(  # type: ignore[no-untyped-call]
        [source],
        build_dir=folder,
        include_path=[str(ROOT)],
        compiler_directives={"language_level": 3, "boundscheck": False, "cdivision": True},
        quiet=True,
    )
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    spec = importlib.util.spec_from_file_location(name, next(Path(folder).glob(f"{name}*.so")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
