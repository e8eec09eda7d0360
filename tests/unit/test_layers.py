"""The shape of the house, proved from its source: who may import whom, and what nobody may touch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Imports point down only, and units of one floor do not know each other.  A unit is a module or package of `clover`.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"types", "errors", "digests", "hints", "terminal"}),
    frozenset({"config", "interfaces"}),
    frozenset({"profiles", "families", "settings", "_native"}),
    frozenset({"planning", "telemetry", "confidence"}),
    frozenset({"accounting", "policies", "backends", "devices", "carbon", "energy"}),
    frozenset({"runtime"}),
    frozenset({"http", "control", "profiling"}),
    frozenset({"server"}),
    frozenset({"simulate", "cluster"}),
    frozenset({"serve", "__main__", "ctl", "mig", "plan"}),
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

# Families are loaded by name, never imported by one; their own code may use what stands below a loaded family.
MODELS = "models"
MODELS_FLOOR = FLOOR_OF["families"]
# The package itself names the public surface, loaded on demand; the floors take its version and nothing else.
PACKAGE = ""
CONSTANTS = {"clover.__version__"}

# What starts by module path, in a process of its own, and must not be pulled into the server.
PROCESSES = {"clover.runtime.worker", "clover.runtime.zygote", "clover.control.solver.process"}
# Where torch may be named at all.
TORCH = ("clover.backends", "clover.runtime.worker", "clover.runtime.zygote", "clover.models")

SOURCES = {
    ".".join(("clover", *path.relative_to(ROOT / "clover").with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted((ROOT / "clover").rglob("*.py"))
} | {
    ".".join(("clover.models", *path.relative_to(ROOT / "models").with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "models").rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in SOURCES.items()}


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module that `module` imports, wherever in its body, as a dotted name with the line."""
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = name in SOURCES or base == "clover"
                yield (name if is_module else base), node.lineno


def unit(module: str) -> str:
    """The unit of `clover` a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def place(module: str, line: int) -> str:
    return f"{SOURCES[module].relative_to(ROOT)}:{line}"


def test_every_unit_has_a_floor() -> None:
    strangers = {unit(module) for module in SOURCES} - set(FLOOR_OF) - {MODELS, PACKAGE}
    assert not strangers, f"give {sorted(strangers)} a floor in FLOORS"


@pytest.mark.slow
def test_imports_point_down_and_siblings_do_not_meet() -> None:
    faults = []
    for module in SOURCES:
        here = unit(module)
        if here == PACKAGE:
            continue
        for name, line in imports(module):
            if name.split(".")[0] != "clover" or name in CONSTANTS or (there := unit(name)) == here:
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


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Ways to run what was meant as data."""
    for node in ast.walk(tree):
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
    faults = [f"{place(module, line)}: {what}" for module, tree in TREES.items() for line, what in dangers(tree)]
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
    assert list(dangers(ast.parse(source)))


def test_the_gate_lets_good_code_pass() -> None:
    assert not list(dangers(ast.parse("model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path)")))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["clover", "clover.server", "clover.serve.command"])
def test_the_server_process_is_free_of_torch(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'torch_tensorrt', 'onnxruntime', 'onnx', 'pynvml'} & set(sys.modules)\n"
        "mapped = [line for line in open('/proc/self/maps') if 'libcuda' in line or 'libtorch' in line]\n"
        "sys.exit(f'{sorted(heavy)} {mapped}' if heavy or mapped else 0)\n"
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


def test_every_kernel_has_its_stub_twin_and_tests() -> None:
    for source in (ROOT / "csrc").glob("*.pyx"):
        for companion in (
            ROOT / "clover" / "_native" / f"{source.stem}.pyi",
            ROOT / "tests" / "reference" / f"{source.stem}.py",
            ROOT / "tests" / "native" / f"test_{source.stem}.py",
        ):
            assert companion.is_file(), f"{companion.relative_to(ROOT)} is missing"
