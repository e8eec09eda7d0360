"""One fixture for every kernel test: the plain-Python twins, then the compiled kernels.

CLOVER_NATIVE names a folder with another build of the kernels (`make test-checked` sets it).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import clover._native

OTHER_BUILD = os.environ.get("CLOVER_NATIVE")
if OTHER_BUILD:
    clover._native.__path__.insert(0, str(Path(OTHER_BUILD).resolve()))


def native(name: str) -> ModuleType:
    """A compiled kernel, of the build asked for."""
    module = importlib.import_module(f"clover._native.{name}")
    if OTHER_BUILD and Path(OTHER_BUILD).resolve() not in Path(str(module.__file__)).parents:
        raise RuntimeError(f"{name} was not built in {OTHER_BUILD}")
    return module


def reference(name: str) -> ModuleType:
    """A twin."""
    return importlib.import_module(f"tests.reference.{name}")


@pytest.fixture(scope="session", params=[reference, native], ids=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The modules of `clover._native.KERNELS`, all twins or all compiled."""
    return SimpleNamespace(**{name: request.param(name) for name in clover._native.KERNELS})


@pytest.fixture(scope="session")
def compiled() -> SimpleNamespace:
    """The compiled kernels alone, for what needs true atomics or two processes."""
    return SimpleNamespace(**{name: native(name) for name in clover._native.KERNELS})
