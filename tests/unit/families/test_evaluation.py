"""Labelled rows match the declaration, and reading them never imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clover import families
from clover.errors import ConfigError
from tests.support.family_folder import DATA, FIXTURES, NAMES, ROOT, write


def test_evaluation_rows_are_checked_against_the_declaration(tmp_path: Path) -> None:
    folder = write(tmp_path)
    spec = families.load_family(str(folder))
    inputs, labels = families.load_evaluation(spec, "held_out")
    assert [array.shape for array in inputs] == [(5, 8, 2)]
    assert labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        families.load_evaluation(spec, "test")
    with pytest.raises(ConfigError, match="no evaluation set"):
        families.load_evaluation(msgspec.structs.replace(spec, evaluation=None), "held_out")
    for wrong, message in (
        ("[np.zeros((5, 8, 2))], np.arange(5)", "x: is float64, FP32 is held as float32"),
        ("[np.zeros((4, 8, 2), np.float32)], np.arange(5)", "does not have one row per label"),
        ("[np.zeros((5, 9, 2), np.float32)], np.arange(5)", r"rows of shape \[9, 2\] do not fit \[-1, 2\]"),
        ("[np.zeros((5, 2), np.float32)], np.arange(5)", r"rows of shape \[2\] do not fit"),
        ("[], np.arange(5)", "gave 0 arrays for 1 inputs"),
        ("[np.zeros((0, 8, 2), np.float32)], np.arange(0)", "gave no labels"),
    ):
        (folder / "data.py").write_text(DATA.replace("[np.zeros((5, 8, 2), np.float32)], np.arange(5)", wrong))
        with pytest.raises(ConfigError, match=message):
            families.load_evaluation(spec, "held_out")


@pytest.mark.parametrize("inside", [True, False])
def test_a_package_that_the_rows_need_is_named_in_one_error(inside: bool, tmp_path: Path) -> None:
    folder = write(tmp_path)
    wanted = "import no_such_package_here"
    text = DATA.replace("    return", f"    {wanted}\n    return") if inside else f"{wanted}\n{DATA}"
    assert wanted in text
    (folder / "data.py").write_text(text)
    with pytest.raises(ConfigError, match=r"evaluation loader 'data:load': No module named 'no_such_package_here'"):
        families.load_evaluation(families.load_family(str(folder)), "held_out")


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_reading_families_and_their_rows_never_imports_torch(tmp_path: Path) -> None:
    code = """
import sys
from clover import families
for ref in sys.argv[1:]:
    spec = families.load_family(ref)
    families.digest_of_variant(spec, spec.variants[0])
    if spec.evaluation is not None:
        families.load_evaluation(spec, "calibration")
print("torch" in sys.modules)
"""
    assert run_python(code, "fashion", *(str(FIXTURES / name) for name in NAMES)) == "False"


@pytest.mark.slow
def test_an_evaluation_loader_that_imports_torch_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "family")
    (folder / "data.py").write_text("import torch\n" + DATA)
    (tmp_path / "torch.py").write_text("# in its place: to import torch itself takes seconds\n")
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from clover import families
from clover.errors import ConfigError
try:
    families.load_evaluation(families.load_family(sys.argv[1]), "held_out")
except ConfigError as error:
    print(error)
"""
    assert "imports torch, which the server must not" in run_python(code, str(folder), str(tmp_path))
