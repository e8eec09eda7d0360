"""The shape of the house, proved from its source: who may import whom, and what nobody may touch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.syntax_trees import nodes
from tests.support.wings import WINGS

ROOT = Path(__file__).resolve().parents[2]

# Imports point down only, and units of one floor do not know each other.  A unit is a module or package of `clover`; in
# the packages of ROOMS, and where FLOORS name one, a module or package of these.
ROOMS = {"planning", "runtime", "telemetry"}
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(
        {"_version", "ancestry", "types", "errors", "malformed", "digests", "hints", "quantities", "terminal", "charts"}
        | {"config_section", "datatypes", "process_clock", "control_time", "bounded_exit", "proc_stat", "unix_http"}
    ),
    frozenset({"low_priority", "plugins"}),
    frozenset({"config_families", "config_records"}),
    frozenset({"config", "cache"}),
    frozenset({"tenants", "steps", "verbs"}),
    frozenset({"grants"}),
    frozenset({"interfaces"}),
    frozenset(
        {
            "profiles",
            "families",
            "settings",
            "telemetry",
            "telemetry.logs",
            "telemetry.ledger",
            "telemetry.dashboards",
            "_native",
        }
    ),
    frozenset({"client", "confidence", "planning", "planning.model", "planning.transition"}),
    frozenset({"planning.packing", "research", "research.problem"}),
    frozenset({"planning.cascade"}),
    frozenset({"planning.search"}),
    frozenset({"planning.budget"}),
    frozenset({"cluster.planning"}),
    frozenset({"accounting", "policies", "backends", "devices", "carbon", "energy"}),
    frozenset({"runtime", "runtime.cascade", "runtime.memory", "report", "importing", "advice", "waiting"}),
    frozenset({"runtime.guard", "worker"}),
    frozenset({"runtime.router", "emulation"}),
    frozenset({"runtime.workers", "runtime.embedded_inputs"}),
    frozenset({"runtime.served", "runtime.embedded", "runtime.split"}),
    frozenset({"control.state", "control.solver"}),
    frozenset({"control.plan", "control.baselines"}),
    frozenset({"control.watch"}),
    frozenset({"http", "control"}),
    frozenset({"profiling", "dashboard", "grpc"}),
    frozenset({"telemetry.metrics", "telemetry.otel", "emulation.profiles"}),
    frozenset({"server"}),
    frozenset({"research.simulate"}),
    frozenset({"cluster"}),
    frozenset({"serve", "__main__", "cli"}),
    frozenset({"cluster.cli", "completion", "emulation.cli", "importing.cli", "report.cli", "research.cli"}),
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

# Families are loaded by name, never imported by one; their own code may use what stands below a loaded family.
MODELS = "models"
MODELS_FLOOR = FLOOR_OF["families"]
# The package itself names the public surface, loaded on demand; no floor takes anything from it.
PACKAGE = ""

# What starts by module path, in a process of its own, and must not be pulled into the server.
PROCESSES = {"clover.worker.main", "clover.worker.zygote", "clover.control.solver.process", "clover.report.apart"} | {
    "clover.importing.probe"
}
# Where torch may be named at all.
TORCH = (
    "clover.backends",
    "clover.importing.probe",
    "clover.worker.main",
    "clover.worker.residents",
    "clover.worker.memory",
    "clover.worker.zygote",
    "clover.models",
)

SOURCES = {
    ".".join(("clover", *path.relative_to(ROOT / "clover").with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted((ROOT / "clover").rglob("*.py"))
} | {
    ".".join(("clover.models", *path.relative_to(ROOT / "models").with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "models").rglob("*.py"))
}


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """Every module that `module` imports, wherever in its body, as a dotted name with the line."""
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in nodes(SOURCES[module]):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = name in SOURCES or base == "clover"
                found.append((name if is_module else base, node.lineno))
    return tuple(found)


def unit(module: str) -> str:
    """Return the unit of `clover` that a module belongs to."""
    parts = module.split(".")
    inner = ".".join(parts[1:3])
    if len(parts) > 2 and (parts[1] in ROOMS or inner in FLOOR_OF):
        return inner
    return parts[1] if len(parts) > 1 else PACKAGE


def place(module: str, line: int) -> str:
    return f"{SOURCES[module].relative_to(ROOT)}:{line}"


def test_every_unit_has_a_floor() -> None:
    strangers = {unit(module) for module in SOURCES} - set(FLOOR_OF) - {MODELS, PACKAGE}
    assert not strangers, f"give {sorted(strangers)} a floor in FLOORS"
    gone = set(FLOOR_OF) - {unit(module) for module in SOURCES}
    assert not gone, f"take {sorted(gone)} out of FLOORS"


@pytest.mark.slow
def test_imports_point_down_and_siblings_do_not_meet() -> None:
    faults = []
    for module in SOURCES:
        here = unit(module)
        if here == PACKAGE:
            continue
        for name, line in imports(module):
            if name.split(".")[0] != "clover" or (there := unit(name)) == here:
                continue
            if there in (MODELS, PACKAGE) or there not in FLOOR_OF:
                faults.append(f"{place(module, line)}: {here} imports {name}")
            elif here == MODELS:
                if FLOOR_OF[there] > MODELS_FLOOR:
                    faults.append(f"{place(module, line)}: a family imports {name}")
            elif FLOOR_OF[there] >= FLOOR_OF[here]:
                direction = "its sibling" if FLOOR_OF[there] == FLOOR_OF[here] else "up to"
                faults.append(f"{place(module, line)}: {here} imports {direction} {name}")
    assert not faults, "\n".join(faults)


# Who names a module of a wing: as a command, a process, a kind of device, what plays it, or to see whether it is there.
NAMES_A_WING = {"clover.__main__", "clover.dashboard.report", "clover.server.page"} | {
    "clover.devices",
    "clover.worker.main",
}
_of_wing = re.compile(rf"clover\.({'|'.join(WINGS)})(\.\w+)*").fullmatch


def test_the_core_imports_no_wing() -> None:
    assert {unit(module).split(".")[0] for module in SOURCES} >= set(WINGS)
    core = [module for module in SOURCES if not _of_wing(module)]
    faults = [f"{place(module, line)}: {name}" for module in core for name, line in imports(module) if _of_wing(name)]
    faults += [where for module in core for name, where in dependencies(module).items() if _of_wing(name)]
    assert not faults, "\n".join(faults)
    naming = {
        module
        for module in core
        for node in nodes(SOURCES[module])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _of_wing(node.value)
    }
    assert naming == NAMES_A_WING


_CIMPORT = re.compile(r"from (clover\.\S+) cimport ")


def dependencies(module: str) -> dict[str, str]:
    """The files of the package that a file depends on, and where: it imports them, be it in a function or for types
    only, or the .pxd beside it cimports them."""
    found = {name: place(module, line) for name, line in imports(module)}
    declared = SOURCES[module].with_suffix(".pxd")
    for line, text in enumerate(declared.read_text().splitlines() if declared.exists() else (), 1):
        if match := _CIMPORT.match(text):
            found.setdefault(match[1], f"{declared.relative_to(ROOT)}:{line}")
    return {name: where for name, where in found.items() if name in SOURCES and name != module}


def circles(graph: dict[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes, sorted, of which each reaches every other one."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = set(graph[ahead.pop()]) - seen
            seen |= new
            ahead += new
        return seen

    reach = {node: reached(node) for node in graph}
    found = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]}
    return sorted(sorted(circle) for circle in found)


def test_files_do_not_import_each_other_in_circles() -> None:
    graph = {module: dependencies(module) for module in SOURCES}
    faults = []
    for circle in circles(graph):
        faults.append(f"a circle of {len(circle)} files:")
        faults += [
            f"  {where}: {module} depends on {name}"
            for module in circle
            for name, where in graph[module].items()
            if name in circle
        ]
    assert not faults, "\n".join(faults)


def test_circles_are_found() -> None:
    assert circles({"a": "bc", "b": "c", "c": ""}) == []
    assert circles({"a": "b", "b": "c", "c": "bd", "d": "e", "e": "d", "f": "f"}) == [["b", "c"], ["d", "e"], ["f"]]


NAMES_A_TEST = re.compile(r"(?<!def )\btest_")


def test_no_test_imports_a_test() -> None:
    faults = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        # Most files name no test but those that they define, and need no parsing.
        if not NAMES_A_TEST.search(path.read_text()):
            continue
        for node in nodes(path):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [part for name in names if name.startswith("tests.") for part in name.split(".")]
            if any(part.startswith("test_") for part in modules):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: what tests share stands in tests/support")
    assert not faults, "\n".join(faults)


def test_nothing_imports_what_runs_as_a_process() -> None:
    faults = [
        f"{place(module, line)}: {name} starts by module path"
        for module in SOURCES
        for name, line in imports(module)
        if name in PROCESSES and module not in PROCESSES
    ]
    assert not faults, "\n".join(faults)


def test_only_workers_know_torch() -> None:
    faults = [
        f"{place(module, line)}: {name}"
        for module in SOURCES
        for name, line in imports(module)
        if name.split(".")[0] in ("torch", "torch_tensorrt", "onnxruntime") and not module.startswith(TORCH)
    ]
    assert not faults, "\n".join(faults)


PICKLERS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def dangers(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Ways to run what was meant as data."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in PICKLERS:
                    yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("eval", "exec", "builtins.eval", "builtins.exec", "os.system"):
                yield node.lineno, f"calls {called}"
            if called.split(".")[-2:] == ["torch", "load"] and keywords.get("weights_only") != "True":
                yield node.lineno, "calls torch.load without weights_only=True"
            if keywords.get("allow_pickle", "False") != "False":
                yield node.lineno, "allows pickles"
            if keywords.get("shell", "False") != "False":
                yield node.lineno, "runs a shell"


@pytest.mark.slow
def test_no_data_is_ever_run() -> None:
    faults = [
        f"{place(module, line)}: {what}" for module, path in SOURCES.items() for line, what in dangers(nodes(path))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(code)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_gate_would_notice(source: str) -> None:
    assert list(dangers(ast.walk(ast.parse(source))))


def test_the_gate_lets_good_code_pass() -> None:
    good = "model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path)"
    assert not list(dangers(ast.walk(ast.parse(good))))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["clover", "clover.server", "clover.serve.command"])
def test_the_server_process_is_free_of_what_is_slow_to_import(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'torch_tensorrt', 'onnxruntime', 'onnx', 'pynvml', 'rich'} & set(sys.modules)\n"
        "mapped = [line for line in open('/proc/self/maps') if 'libcuda' in line or 'libtorch' in line]\n"
        "sys.exit(f'{sorted(heavy)} {mapped}' if heavy or mapped else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_client_takes_nothing_of_the_server_and_nothing_compiled() -> None:
    pytest.importorskip("httpx", reason="the client needs the extra `client`")
    program = (
        "import sys, clover.client\n"
        "ours = {name: getattr(module, '__file__', '') for name, module in sys.modules.items()\n"
        "        if name.partition('.')[0] == 'clover'}\n"
        "rest = {name.split('.')[1] for name in ours if '.' in name} - {'_version', 'errors', 'client'}\n"
        "built = [file for file in ours.values() if file.endswith('.so')]\n"
        "slow = {'torch', 'uvloop', 'httptools'} & set(sys.modules)\n"
        "sys.exit(f'{rest} {built} {slow}' if rest or built or slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_missing_kernel_names_the_build_command() -> None:
    program = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name.endswith('_native.ring') else find(name, *rest)\n"
        "import clover._native\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "missing: ring" in done.stderr
    assert "setup.py build_ext --inplace" in done.stderr
    # And a command that needs it prints that line alone.
    doctor = "from clover import __main__ as it; raise SystemExit(it.main(['doctor']))"
    start = program.replace("import clover._native", doctor)
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("clover: Clover's kernels are not built here (missing: ring). Build them with")
    assert len(done.stderr.splitlines()) == 1


def test_every_kernel_has_its_stub_twin_and_tests() -> None:
    for source in (ROOT / "csrc").glob("*.pyx"):
        for companion in (
            ROOT / "clover" / "_native" / f"{source.stem}.pyi",
            ROOT / "tests" / "reference" / f"{source.stem}.py",
            ROOT / "tests" / "native" / f"test_{source.stem}.py",
        ):
            assert companion.is_file(), f"{companion.relative_to(ROOT)} is missing"
    for shared in (ROOT / "csrc").glob("*.pxd"):
        twin = ROOT / "tests" / "reference" / f"{shared.stem}.py"
        assert twin.is_file(), f"{twin.relative_to(ROOT)} is missing"
