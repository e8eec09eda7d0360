"""Folders of families for tests: one that is written, and those in tests/families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clover import families
from clover.types import FamilySpec

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "families"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/family.toml"))

BASE = """\
name = "echo"
max_batch = 4

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]
max_shape = [8, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [3]
labels = ["a", "b", "c"]

[[variants]]
name = "only"
kind = "python"
loader = "model:load"
weights = "weights/w.bin"
accuracy = { value = 90.0, metric = "top1", source = "test" }

[evaluation]
loader = "data:load"
"""

MODEL = """\
from . import parts

def load(variant, folder):
    return lambda inputs: [parts.scale(inputs[0])]
"""

DATA = """\
import numpy as np

def load(folder, split):
    return [np.zeros((5, 8, 2), np.float32)], np.arange(5)
"""


def write(folder: Path, toml: str = BASE) -> Path:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "family.toml").write_text(toml)
    (folder / "model.py").write_text(MODEL)
    (folder / "parts.py").write_text("def scale(x):\n    return x * 2\n")
    (folder / "data.py").write_text(DATA)
    (folder / "weights" / "w.bin").write_bytes(b"weights")
    return folder


def fixture(name: str) -> FamilySpec:
    return families.load_family(str(FIXTURES / name))


def model_of(spec: FamilySpec, variant: str = "") -> Any:
    chosen = spec.variant(variant) if variant else spec.variants[0]
    return families.resolve(chosen.loader, Path(spec.folder))(chosen, Path(spec.folder))


def with_precision(tmp_path: Path, precision: str, kind: str = "torch") -> FamilySpec:
    (tmp_path / "family.toml").write_text(
        f"""
        name = "f"
        inputs = [{{ name = "x", datatype = "FP32", shape = [2] }}]
        outputs = [{{ name = "y", datatype = "FP32", shape = [2] }}]
        [[variants]]
        name = "plain"
        loader = "model:load"
        [[variants]]
        name = "half"
        loader = "model:load"
        kind = "{kind}"
        precision = {precision}
        """,
        encoding="utf-8",
    )
    return families.load_family(str(tmp_path))
