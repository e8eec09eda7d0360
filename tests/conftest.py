"""Settings all tests share, and which form of the compiled modules they test.

A module with a .pxd beside it is compiled, and its source is its own twin: `make test-checked` runs the tests of these
modules through the source as well (CLOVER_SOURCE=1).
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib.abc
import importlib.util
import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
COMPILED = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.with_suffix(".py")
    for path in (ROOT / "clover").rglob("*.pxd")
    if path.parent.name != "_native"
}


class Sources(importlib.abc.MetaPathFinder):
    """Finds compiled modules by their source."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = COMPILED.get(fullname)
        return importlib.util.spec_from_file_location(fullname, source) if source is not None else None


class OtherBuild(importlib.abc.MetaPathFinder):
    """Finds kernels and compiled modules in the build that the folder CLOVER_COMPILED holds (`make sanitize`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = Path(*fullname.split(".")).with_suffix(EXTENSION_SUFFIXES[0])
        kernel = (ROOT / "csrc" / f"{place.name.partition('.')[0]}.pyx").exists() or place.name.startswith("shared.")
        if fullname not in COMPILED and not kernel:
            return None
        if fullname not in COMPILED and not fullname.startswith("clover._native."):
            return None
        return importlib.util.spec_from_file_location(fullname, self._folder / place)


if os.environ.get("CLOVER_SOURCE") == "1":
    sys.meta_path.insert(0, Sources())
elif other_build := os.environ.get("CLOVER_COMPILED"):
    sys.meta_path.insert(0, OtherBuild(Path(other_build)))

# As in workers and the planner's process: threads of torch and BLAS spin while they wait for each other, and each of
# pytest-xdist's processes would start as many as there are cores.  Said before numpy is imported.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# What is printed depends on the width of the terminal; pytest-xdist hands that of its own process on.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Servers that tests start keep their ledgers where nobody looks for them, and not in the user's home.
_STATE = tempfile.TemporaryDirectory(prefix="clover-tests-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name
atexit.register(_STATE.cleanup)

# Emulated boards take as long as real ones to make and remove instances; tests do not wait for that.
os.environ.setdefault("CLOVER_NVML_LATENCY", "0")

# One fixed set of examples a run, so that a failure is a change and not luck.  --hypothesis-profile deep searches
# on, and quick, which is for `make test-quick`, looks at a quarter of them.
# No per-example deadline: on shared cores it measures the neighbours.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=15)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


class AloneLock:
    """Runs a test marked `alone` while the other processes of pytest-xdist run no test.

    Every test holds the lock `_tests` shared, a test marked `alone` holds it exclusively.  Each takes `_queue` before,
    so that no further test begins while one waits to be alone.  Folders are locked, which leaves no files behind.
    """

    def __init__(self) -> None:
        self._queue, self._tests = (os.open(folder, os.O_RDONLY) for folder in (ROOT, ROOT / "tests"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        fcntl.flock(self._tests, kind)
        fcntl.flock(self._queue, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(self._tests, fcntl.LOCK_UN)


class SpreadOrder:
    """Orders the tests for the processes of pytest-xdist, which begin with equally many in a row each, and later take
    from the end of each other's rows.

    What takes long stands at the beginning of a row, so that none of it is left running at the end, and what waits more
    than it computes (tests of whole servers) beside what computes.  There are six such beginnings; of fewer processes,
    the first have two.  Tests marked `alone` come first of all, since later all processes would wait until the longest
    test that runs has ended.  Files that share a measured profile of `toy` (with what is `alone`, and has servers,
    too), and those that import torch, stand in one row each: few processes have to measure and import.
    """

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.path)  # which keeps the order within a file
        e2e = ROOT / "tests" / "e2e"
        of_toy = {item.path for item in items if "toy_cache" in getattr(item, "fixturenames", ())}
        servers = sorted({item.path for item in items if item.path.parent == e2e} - of_toy)
        with_torch = {path for path in {item.path for item in items} if "    import torch\n" in path.read_text()}
        heads: list[list[pytest.Item]] = [[] for _ in range(6)]
        others = []
        for item in items:
            if item.path in of_toy or item.get_closest_marker("alone"):
                heads[1].append(item)
            elif item.path in servers:
                heads[2 + servers.index(item.path) % 2].append(item)
            elif item.path in with_torch:
                heads[4].append(item)
            elif item.path.parent == ROOT / "tests" / "browser":
                heads[5].append(item)
            elif item.get_closest_marker("timeout"):
                heads[0].append(item)
            else:
                others.append(item)
        for head in heads:  # those with a time limit of their own take longest
            head.sort(key=lambda item: item.get_closest_marker("timeout") is None)
            head.sort(key=lambda item: item.get_closest_marker("alone") is None)
        # Rows as long as pytest-xdist cuts them.
        end, rows = 0, int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        ordered: list[pytest.Item] = []
        for row in range(rows):
            end += (len(items) - end) // (rows - row)
            ordered += itertools.chain.from_iterable(heads[row::rows])
            size = max(0, end - len(ordered))
            ordered += others[:size]
            del others[:size]
        items[:] = ordered + others


def pytest_configure(config: pytest.Config) -> None:
    """Share the tests with the other processes, if there are any."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        config.pluginmanager.register(AloneLock())
        config.pluginmanager.register(SpreadOrder())


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector, which would look through thousands of tests, that all stay, again and
    again: it takes a third of the time.  Nor does it look at them later.

    Each of pytest-xdist's processes begins with other files, so that in a new clone each compiles a part of them and
    finds the rest compiled; `SpreadOrder` puts the tests in one order again."""
    if "PYTEST_XDIST_WORKER" in os.environ and session.config.args == session.config.getini("testpaths"):
        files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py"))
        first = len(files) * int(os.environ["PYTEST_XDIST_WORKER"][2:]) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        session.config.args = files[first:] + files[:first]
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Put back the handlers of the root logger and the levels of what Clover logs, after each test: commands, and
    modules that tests import, set them for good, and a test that looks for a line would miss it in some orders."""
    root = logging.getLogger()
    handlers, before = list(root.handlers), _log_levels()
    try:
        return (yield)
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()  # or its thread stays, and writes to a descriptor that may be another's by then
        root.handlers[:] = handlers
        for logger, level in _log_levels().items():
            if level != before.get(logger, logging.NOTSET):
                logger.setLevel(before.get(logger, logging.NOTSET))


def _log_levels() -> dict[logging.Logger, int]:
    """Return the level of each logger that `clover.telemetry.logs` or a test may set."""
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    ours = ("root", "clover", "asyncio")
    return {one: one.level for one in (logging.root, *loggers) if one.name.partition(".")[0] in ours}


_modules_frozen = 0


def pytest_runtest_logfinish() -> None:
    """Keep the garbage collector from what a test imported, which stays as well: once torch and onnx are there, each
    collection that a test asks for would take a quarter of a second."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 50:
        if _modules_frozen:  # at first there is what collecting left, which is frozen
            gc.collect()
            gc.freeze()
        _modules_frozen = len(sys.modules)


def pytest_sessionstart() -> None:
    """What was compiled before its source changed would be tested instead of it."""
    native = ROOT / "clover" / "_native"
    sources = {source.with_suffix(EXTENSION_SUFFIXES[0]): source for source in COMPILED.values()}
    sources = {} if os.environ.get("CLOVER_SOURCE") == "1" else sources
    if not os.environ.get("CLOVER_NATIVE"):
        for source in (ROOT / "csrc").glob("*.pyx"):
            sources[native / (source.stem + EXTENSION_SUFFIXES[0])] = source
    for built, source in sources.items():
        declared = (native if source.suffix == ".pyx" else source.parent) / f"{source.stem}.pxd"
        # Kernels share code by `from csrc.NAME cimport ...`.
        shared = [path for path in (ROOT / "csrc").glob("*.pxd") if f"from csrc.{path.stem} " in source.read_text()]
        changed = max(path.stat().st_mtime for path in (source, declared, *shared) if path.exists())
        if not built.exists() or built.stat().st_mtime < changed:
            what = "has changed since it was compiled" if built.exists() else "is not compiled here"
            build = "CLOVER_BUILD=release python setup.py build_ext --inplace"
            pytest.exit(f"{source.name} {what}: {build}, or CLOVER_SOURCE=1 to test the source", 4)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket, which a test's own folder may not."""
    with tempfile.TemporaryDirectory(prefix="clover-", dir="/tmp") as found:
        yield Path(found)
