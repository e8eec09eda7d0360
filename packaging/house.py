"""Prints how large Clover is: lines, modules, settings, metrics, commands, pages.  A thermometer, which fails nothing.

    python packaging/house.py [ROOT] [--static]

ROOT is the checkout to count, this one by default.  Unless `--static`, `fashion` is served from it and asked for one
answer, with its plan and receipt, and the modules of `clover` that each of its processes imported are counted.  Its
profile is kept in build/house, so that only the first call measures one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

WINGS = ["cluster", "research", "report", "importing", "emulation", "charts", "policies.paper"]
SMALL = 100
RECORDER = """
import os, sys
class Recorder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "clover":
            with open(os.path.join({folder!r}, str(os.getpid())), "a") as file:
                file.write(name + "\\n")
sys.meta_path.insert(0, Recorder)
"""


class House:
    """The Python of a checkout, by module."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {self._module(path): path for path in sorted((root / "clover").rglob("*.py"))}
        self.lines = {name: len(path.read_bytes().splitlines()) for name, path in self.files.items()}

    def _module(self, path: Path) -> str:
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    def size(self, modules: Iterable[str]) -> str:
        """Return in words how many of `modules` are files, and their lines."""
        known = [name for name in modules if name in self.files]
        return f"{len(known)} modules, {sum(self.lines[name] for name in known)} lines"

    def crumbs(self) -> list[str]:
        """Return the short modules that exactly one other imports, packages left out."""
        importers = Counter(name for module in self.files for name in self._imported(module))
        small = [name for name, path in self.files.items() if path.stem != "__init__" and self.lines[name] < SMALL]
        return [name for name in small if importers[name] == 1]

    def _imported(self, module: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(self.files[module].read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= named & set(self.files) or {node.module}
        return found - {module}

    def count(self, expression: str, module: str, name: str) -> str:
        """Return `expression` of the `name` that `module` has, evaluated in the checkout."""
        line = f"from {module} import {name}; print({expression})"
        done = subprocess.run([sys.executable, "-c", line], cwd=self.root, capture_output=True, text=True)
        return done.stdout.strip() or f"unknown ({done.stderr.strip().splitlines()[-1]})"


@contextmanager
def served(root: Path, paths: list[Path]) -> Iterator[tuple[int, str]]:
    """Serve `fashion` from `root`, with `paths` to import from; yield its process id and address."""
    keep = root / "build" / "house"
    flags = ["--port", "0", "--cache-dir", str(keep), "--state-dir", str(keep), "--carbon", "static:300"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    keep.mkdir(parents=True, exist_ok=True)
    with (keep / "out").open("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "clover.serve", "fashion", *flags], cwd=root, env=environ, stdout=out, stderr=out
        )
        try:
            while (match := re.search(r"http://127\.0\.0\.1:\d+", (keep / "out").read_text())) is None:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: see {keep / 'out'}")
                time.sleep(0.1)
            yield process.pid, match[0]
        finally:
            process.terminate()
            process.wait()


def run(house: House) -> None:
    """Print what a server of `fashion` imports, and how many metrics it has."""
    if not list((house.root / "build" / "house").glob("profiles/*")):
        with served(house.root, []):
            pass
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(RECORDER.format(folder=folder))
        with served(house.root, [Path(folder)]) as (pid, url):
            print(f"the server, before a request        {house.size(recorded(folder, str(pid)))}")
            image = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
            body = json.dumps({"inputs": [image]}).encode()
            urllib.request.urlopen(f"{url}/v2/models/fashion/infer", body, timeout=60).close()
            time.sleep(5.0)  # for a plan
            print(f"all processes, after an answer      {house.size(recorded(folder, '[0-9]*'))}")
            text = urllib.request.urlopen(f"{url}/metrics", timeout=60).read().decode()
    metrics = re.findall(r"^# TYPE clover_\w+(?<!_created) ", text, re.MULTILINE)
    print(f"metrics                             {len(metrics)}")


def recorded(folder: str, pids: str) -> set[str]:
    """Return what the processes of `pids` imported together."""
    return {name for path in Path(folder).glob(pids) for name in path.read_text().split()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how large the house is.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--static", action="store_true", help="count files only; serve nothing")
    given = parser.parse_args()
    house = House(given.root.resolve())
    pages = [path.read_text() for path in (house.root / "docs").rglob("*.md")]
    wings = tuple(f"clover.{name}." for name in WINGS)
    core = [name for name in house.files if not f"{name}.".startswith(wings)]
    compiled = [path for path in (house.root / "clover").rglob("*.pxd") if path.with_suffix(".py").exists()]
    compiled += (house.root / "csrc").glob("*.pyx")
    crumbs = house.crumbs()
    print(f"clover/                             {house.size(house.files)}")
    print(f"core                                {house.size(core)}")
    print(f"compiled modules                    {len(compiled)}")
    print(f"one importer, under {SMALL} lines       {len(crumbs)}: {' '.join(crumbs).replace('clover.', '')}")
    print(f"pages of docs/                      {len(pages)} of {sum(len(page.split()) for page in pages)} words")
    print(f"settings                            {house.count('len(SETTINGS)', 'clover.settings', 'SETTINGS')}")
    counted = "len([name for name, (place, _) in COMMANDS.items() if not str(place).startswith(" + repr(wings) + ")])"
    commands = [house.count(counting, "clover.__main__", "COMMANDS") for counting in ("len(COMMANDS)", counted)]
    print(f"commands                            {commands[0]}, of the core {commands[1]}")
    if not given.static:
        run(house)


if __name__ == "__main__":
    main()
