"""Families are found, read, checked and called; whatever is wrong with one is refused by file and key."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clover import families
from clover.errors import ConfigError
from clover.types import EvaluationSpec, FamilySpec, TensorSpec, VariantSpec

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


# --- finding ----------------------------------------------------------------------------------------------------------


def test_the_default_family_is_shipped() -> None:
    assert "fashion" in families.shipped()
    spec = families.load_family("fashion")
    assert spec.name == "fashion"
    assert Path(spec.folder).is_absolute()
    assert len(spec.variants) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_fixture_families_load_and_survive_json(name: str) -> None:
    spec = fixture(name)
    assert spec.name == name
    assert re.fullmatch(r"[0-9a-f]{64}", spec.digest)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=FamilySpec) == spec
    assert families.load_family(spec) == spec


def test_a_family_may_be_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert families.load_family(str(tmp_path / "family.toml")) == families.load_family(str(tmp_path))


def test_an_unknown_family_names_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"no family 'fashon' \(did you mean fashion\?\).*shipped families: .*fashion"
    ):
        families.load_family("fashon")


@pytest.mark.parametrize("ref", ["", "..", "../fashion", "fashion/../fashion", "a:b:c", "json", "no/such/folder"])
def test_odd_references_are_refused(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        families.load_family(ref)


def test_without_installed_families_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(families.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(families, "__file__", str(tmp_path / "clover" / "families.py"))
    with pytest.raises(ConfigError, match="not installed"):
        families.shipped()
    with pytest.raises(ConfigError, match="no shipped families are installed"):
        families.load_family("fashion")


MODULE = """\
from clover.types import FamilySpec, TensorSpec, VariantSpec

FAMILY = FamilySpec(
    name="echo",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(2,)),),
    variants=(VariantSpec(name="only", kind="python", loader="{module}:load"),),
)
NUMBER = 3

def make():
    return FAMILY

def load(variant, folder):
    return lambda inputs: inputs
"""


def test_a_module_attribute_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_family_module.py").write_text(MODULE.format(module="my_family_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = families.load_family("my_family_module:FAMILY")
    assert spec == families.load_family("my_family_module:make")
    assert spec.folder == str(tmp_path)
    assert spec.digest
    row = [np.ones((1, 2), np.float32)]
    assert model_of(spec)(row) is row
    with pytest.raises(ConfigError, match=r"no FAMILI \(did you mean FAMILY\?\)"):
        families.load_family("my_family_module:FAMILI")
    with pytest.raises(ConfigError, match="is a int, not a FamilySpec"):
        families.load_family("my_family_module:NUMBER")
    with pytest.raises(ConfigError, match="cannot be imported"):
        families.load_family("no_such_module_at_all:FAMILY")


def test_a_family_is_referred_to_by_what_a_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert families.reference(families.load_family("fashion")) == "fashion"
    folder = tmp_path / "my fashion"
    folder.mkdir()
    spec = families.load_family(str(write(folder, BASE.replace('"echo"', '"fashion"'))))
    (typed,) = shlex.split(families.reference(spec))
    assert families.load_family(typed) == spec
    (tmp_path / "family_in_a_module.py").write_text(MODULE.format(module="family_in_a_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert families.reference(families.load_family("family_in_a_module:FAMILY")) == "MODULE:ATTRIBUTE"


def test_a_spec_without_a_folder_is_complete_without_one() -> None:
    spec = FamilySpec(
        name="inline",
        inputs=(TensorSpec(name="x", datatype="INT8", shape=()),),
        outputs=(TensorSpec(name="y", datatype="INT8", shape=()),),
        variants=(VariantSpec(name="only", loader="json:loads"),),
    )
    completed = families.load_family(spec)
    assert completed.folder == ""
    assert completed.digest
    import json

    assert families.resolve("json:loads", completed.folder) is json.loads


# --- checking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch", "max_bach", r"family\.toml: max_bach: unknown key \(did you mean max_batch\?\)"),
        ("datatype", "datatipe", r"inputs\[0\]\.datatipe: unknown key \(did you mean datatype\?\)"),
        ("weights =", "wieghts =", r"variants\[0\]\.wieghts: unknown key \(did you mean weights\?\)"),
        ("metric", "metrik", r"variants\[0\]\.accuracy\.metrik: unknown key \(did you mean metric\?\)"),
        ('loader = "data:load"', "lader = 1", r"evaluation\.lader: unknown key \(did you mean loader\?\)"),
        ('name = "echo"', 'name = "echo"\nfolder = "/"', r"folder: is filled in by Clover"),
        ('name = "echo"', 'name = "echo"\ndigest = "0"', r"digest: is filled in by Clover"),
        ('name = "echo"', "", r"missing required field `name`"),
        ('name = "echo"', 'name = "a/b"', r"name: 'a/b' is not 1 to 128 of"),
        ('name = "echo"', 'name = ".."', r"name: '\.\.' is not"),
        ('name = "echo"', f'name = "{"n" * 129}"', r"name: .* is not 1 to 128 of"),
        ("max_batch = 4", "max_batch = 0", r"max_batch: 0 is not within"),
        ("max_batch = 4", 'max_batch = "4"', r"max_batch: expected `int`, got `str`"),
        ('"FP32"', '"fp32"', r"inputs\[0\]\.datatype: 'fp32' is unknown \(did you mean FP32\?\)"),
        ("max_shape = [8, 2]", "", r"inputs\[0\]\.max_shape: is needed"),
        ("max_shape = [8, 2]", "max_shape = [8]", r"max_shape: \[8\] does not bound \[-1, 2\]"),
        ("max_shape = [8, 2]", "max_shape = [8, 3]", r"max_shape: \[8, 3\] does not bound"),
        ("max_shape = [8, 2]", "max_shape = [0, 2]", r"max_shape: \[0, 2\] does not bound"),
        ("max_shape = [8, 2]", "max_shape = [8, 2]\nmax_bytes = 9", r"max_bytes: belongs to BYTES"),
        ("shape = [3]", "shape = [-2]", r"outputs\[0\]\.shape: \[-2\]: an axis is positive"),
        ("shape = [3]", "shape = [1,1,1,1,1,1,1,3]", r"outputs\[0\]\.shape: has 8 axes"),
        ("shape = [3]", "shape = [4]", r"outputs\[0\]\.labels: 3 labels for 4 values"),
        ('datatype = "FP32"', 'datatype = "BYTES"', r"inputs\[0\]\.max_bytes: a row of 16 elements takes at least 64"),
        ('"only"', '"only me"', r"variants\[0\]\.name: 'only me' is not"),
        ('"model:load"', '"model.load"', r"variants\[0\]\.loader: 'model\.load' is not of the form module:function"),
        ('"model:load"', '"../model:load"', r"variants\[0\]\.loader"),
        ('"python"', '"onnx"', r"variants\[0\]\.kind: invalid enum value 'onnx'"),
        ("90.0", "190.0", r"variants\[0\]\.accuracy\.value: 190\.0 is not a percentage"),
        ("weights/w.bin", "/etc/passwd", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "../w.bin", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "weights/../../w.bin", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "weights/none.bin", r"variants\[0\]\.weights: no file 'weights/none\.bin'"),
        ("weights/w.bin", "weights", r"variants\[0\]\.weights: no file 'weights'"),
        ('"data:load"', '"data:load"\nmetric = "bleu"', r"evaluation\.metric: 'bleu' is unknown"),
        ("[[inputs]]", "[[inputs]", r"family\.toml: not TOML"),
        ('labels = ["a", "b", "c"]', "labels = 3", r"outputs\[0\]\.labels: expected `array`"),
    ],
)
def test_a_wrong_declaration_is_refused_by_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in BASE
    write(tmp_path, BASE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        families.load_family(str(tmp_path))
    assert str(tmp_path / "family.toml") in str(caught.value)


@pytest.mark.parametrize("table", ["inputs", "outputs", "variants"])
def test_tensors_and_variants_are_needed_and_unique(table: str, tmp_path: Path) -> None:
    start = BASE.index(f"[[{table}]]")
    end = BASE.index("\n[", start) + 1
    block = BASE[start:end]
    write(tmp_path, BASE[:end] + block + BASE[end:])
    with pytest.raises(ConfigError, match=rf"{table}\[1\]\.name: .* is there twice"):
        families.load_family(str(tmp_path))
    write(tmp_path, f"{table} = []\n" + BASE.replace(block, "", 1))
    with pytest.raises(ConfigError, match=rf"{table}: at least one is needed"):
        families.load_family(str(tmp_path))


def test_labels_belong_to_outputs(tmp_path: Path) -> None:
    write(tmp_path, BASE.replace("max_shape = [8, 2]", 'max_shape = [8, 2]\nlabels = ["a"]'))
    with pytest.raises(ConfigError, match=r"inputs\[0\]\.labels: only outputs"):
        families.load_family(str(tmp_path))


def test_weights_may_link_inside_the_folder_but_not_out_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "family")
    target = folder / "weights" / "w.bin"
    (folder / "weights" / "inside.bin").symlink_to(target)
    write(folder, BASE.replace("w.bin", "inside.bin"))
    assert families.load_family(str(folder)).variants[0].weights == "weights/inside.bin"
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "weights" / "outside.bin").symlink_to(tmp_path / "secret")
    write(folder, BASE.replace("w.bin", "outside.bin"))
    with pytest.raises(ConfigError, match="is a link that leaves"):
        families.load_family(str(folder))


def test_a_folder_without_a_declaration_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"family\.toml: cannot be read .*: a family is a folder with family\.toml"):
        families.load_family(str(tmp_path))


KEYS = st.sampled_from(["name", "max_batch", "inputs", "outputs", "variants", "evaluation", "version", "shape", "nmae"])
TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters='"\\'), max_size=8)
SCALARS = st.one_of(st.integers(-10, 10), st.booleans(), TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, VALUES, max_size=2), removed=st.sets(KEYS, max_size=1))
def test_any_declaration_loads_or_is_a_config_error(changes: dict[str, Any], removed: set[str], tmp_path: Path) -> None:
    write(tmp_path)
    table = {key: value for key, value in tomllib.loads(BASE).items() if key not in removed} | changes
    (tmp_path / "family.toml").write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in table.items()))
    try:
        outcome = families.load_family(str(tmp_path)).digest
    except ConfigError as error:
        outcome = str(error)
    assert re.fullmatch(r"[0-9a-f]{64}|.*family\.toml: .*", outcome, re.DOTALL)


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_follows_declaration_python_and_weights_not_the_place(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    digest = families.load_family(str(first)).digest
    assert families.load_family(str(second)).digest == digest
    (second / "README.md").write_text("notes")
    (second / "__pycache__").mkdir()
    (second / "__pycache__" / "x.py").write_text("")
    assert families.load_family(str(second)).digest == digest
    seen = {digest}
    for file, content in (
        ("parts.py", "def scale(x):\n    return x * 3\n"),
        ("weights/w.bin", "other"),
        ("family.toml", BASE.replace("max_batch = 4", "max_batch = 5")),
    ):
        (second / file).write_text(content)
        seen.add(families.load_family(str(second)).digest)
    assert len(seen) == 4


def test_the_digest_of_a_variant_ignores_its_siblings(tmp_path: Path) -> None:
    more = BASE + '\n[[variants]]\nname = "more"\nloader = "model:load"\nweights = "weights/m.bin"\n'
    folder = write(tmp_path, BASE)
    (folder / "weights" / "m.bin").write_bytes(b"m")
    alone = families.load_family(str(folder))
    only = families.digest_of_variant(alone, "only")
    (folder / "family.toml").write_text(more.replace("90.0", "91.0"))
    both = families.load_family(str(folder))
    assert families.digest_of_variant(both, both.variant("only")) == only
    other = families.digest_of_variant(both, "more")
    assert other != only
    (folder / "weights" / "m.bin").write_bytes(b"n")
    assert families.digest_of_variant(both, "only") == only
    assert families.digest_of_variant(both, "more") != other
    (folder / "weights" / "w.bin").write_bytes(b"n")
    assert families.digest_of_variant(both, "only") != only
    with pytest.raises(KeyError):
        families.digest_of_variant(both, "none")


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_two_folders_with_the_same_modules_do_not_clash(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    (second / "parts.py").write_text("def scale(x):\n    return x * 3\n")
    row = [np.ones((1, 8, 2), np.float32)]
    assert model_of(families.load_family(str(first)))(row)[0].max() == 2
    assert model_of(families.load_family(str(second)))(row)[0].max() == 3
    assert "model" not in sys.modules
    assert "parts" not in sys.modules


def test_an_edited_folder_is_read_afresh(tmp_path: Path) -> None:
    folder = write(tmp_path)
    row = [np.ones((1, 8, 2), np.float32)]
    assert model_of(families.load_family(str(folder)))(row)[0].max() == 2
    (folder / "parts.py").write_text("def scale(x):\n    return x * 30\n")
    assert model_of(families.load_family(str(folder)))(row)[0].max() == 30


def test_a_module_in_a_subfolder_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "nets").mkdir()
    (folder / "nets" / "cnn.py").write_text(
        "from ..parts import scale\n\ndef load(variant, folder):\n    return scale\n"
    )
    assert families.resolve("nets.cnn:load", folder)(None, folder)(4) == 8


def test_what_a_loader_lacks_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(ConfigError, match=r"module model has no function lode \(did you mean load\?\)"):
        families.resolve("model:lode", folder)
    with pytest.raises(ConfigError, match="no module nowhere_at_all in the family's folder, nor to import"):
        families.resolve("nowhere_at_all:load", folder)
    with pytest.raises(ConfigError, match="not of the form"):
        families.resolve("model", folder)
    (folder / "model.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        families.resolve("model:load", folder)


def test_a_loader_s_module_is_looked_for_but_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "family")
    (folder / "model.py").write_text("raise AssertionError('imported')\n")
    families.check_loaders(families.load_family(str(folder)))
    package = tmp_path / "a_package_apart"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "nets.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for loader, found in [
        ("a_package_apart:load", True),
        ("a_package_apart.nets:load", True),
        ("a_package_apart.nests:load", False),
        ("a_package_apart.nets.deeper:load", False),
        ("json.decoder:load", True),
        ("nowhere_at_all:load", False),
    ]:
        (folder / "family.toml").write_text(BASE.replace('"data:load"', f'"{loader}"'))
        spec = families.load_family(str(folder))
        if found:
            families.check_loaders(spec)
        else:
            with pytest.raises(ConfigError, match=rf"evaluation: loader '{loader}': no module"):
                families.check_loaders(spec)
    (folder / "model.py").unlink()
    with pytest.raises(ConfigError, match="variant only: loader 'model:load': no module model in the family's folder"):
        families.check_loaders(spec)


# --- evaluation rows --------------------------------------------------------------------------------------------------


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
    folder = write(tmp_path)
    (folder / "data.py").write_text("import torch\n" + DATA)
    code = """
import sys
from clover import families
from clover.errors import ConfigError
try:
    families.load_evaluation(families.load_family(sys.argv[1]), "held_out")
except ConfigError as error:
    print(error)
"""
    assert "imports torch, which the server must not" in run_python(code, str(folder))


# --- what the fixture families do -------------------------------------------------------------------------------------


def test_simple_adds_and_subtracts() -> None:
    left, right = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    total, difference = model_of(fixture("simple"))([left, right])
    assert total.dtype == difference.dtype == np.int32
    np.testing.assert_array_equal(total, left + 1)
    np.testing.assert_array_equal(difference, left - 1)


@pytest.mark.slow
def test_simple_string_adds_and_subtracts_decimal_strings() -> None:
    left = np.array([[b"%d" % n for n in range(16)]], np.object_)
    right = np.full((1, 16), b"1", np.object_)
    total, difference = model_of(fixture("simple_string"))([left, right])
    assert total.shape == difference.shape == (1, 16)
    assert total.dtype == np.object_
    assert total[0, :3].tolist() == [b"1", b"2", b"3"]
    assert difference[0, :3].tolist() == [b"-1", b"0", b"1"]
    with pytest.raises(ValueError, match="invalid literal"):
        model_of(fixture("simple_string"))([np.full((1, 16), b"x", np.object_), right])


@pytest.mark.parametrize("name", ["identity_bytes", "identity_fp32", "identity_types"])
def test_identities_echo(name: str) -> None:
    spec = fixture(name)
    arrays = [np.zeros((2, *tensor.bound), families.DATATYPES[tensor.datatype]) for tensor in spec.inputs]
    echoed = model_of(spec)(arrays)
    assert [id(array) for array in echoed] == [id(array) for array in arrays]
    assert [tensor.datatype for tensor in spec.inputs] == [tensor.datatype for tensor in spec.outputs]


def test_identity_types_has_every_numeric_datatype() -> None:
    declared = {tensor.datatype for tensor in fixture("identity_types").inputs}
    assert declared | {"BYTES"} == set(families.DATATYPES)


def test_slow_waits_as_long_as_its_variant_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    spec = fixture("slow")
    row = [np.ones((3, 1), np.float32)]
    answers = [model_of(spec, variant.name)(row)[1].ravel().tolist() for variant in spec.variants]
    assert answers == [[0, 0, 0], [1, 1, 1]]
    assert slept == [0.002, 0.02]


def test_crashy_fails_as_asked() -> None:
    spec = fixture("crashy")
    model = model_of(spec, "always")
    assert model([np.zeros((2, 1), np.int32)])[0].tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="asked to raise"):
        model([np.array([[0], [1]], np.int32)])
    assert model([np.array([[5]], np.int32)])[0].shape == (1, 2)
    with pytest.raises(RuntimeError, match="asked not to load"):
        model_of(spec, "unloadable")


def test_toy_trades_accuracy_for_cost() -> None:
    import torch

    spec = fixture("toy")
    (numbers,), labels = families.load_evaluation(spec, "held_out")
    accuracy = {}
    for variant in spec.variants:
        with torch.inference_mode():
            answers = model_of(spec, variant.name)(torch.from_numpy(numbers)).argmax(1).numpy()
        accuracy[variant.name] = float((answers == labels).mean())
    assert 0.4 < accuracy["half"] < 0.7
    assert accuracy["full"] > 0.85


# --- the page about families ------------------------------------------------------------------------------------------


def test_the_documented_family_is_twenty_lines_and_runs(tmp_path: Path) -> None:
    import torch

    page = (ROOT / "docs" / "families.md").read_text()
    files = dict(re.findall(r"```\w+ ([\w.]+)\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"family.toml", "model.py", "data.py"}
    assert sum(1 for text in files.values() for line in text.splitlines() if line.strip()) <= 20
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    spec = families.load_family(str(tmp_path))
    assert spec.evaluation == EvaluationSpec(loader="data:load")
    (points,), labels = families.load_evaluation(spec, "held_out")
    accuracy = []
    for variant in spec.variants:
        with torch.inference_mode():
            probabilities = model_of(spec, variant.name)(torch.from_numpy(points)).numpy()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        accuracy.append(float((probabilities.argmax(1) == labels).mean()))
    assert 0.7 < accuracy[0] < 0.85
    assert accuracy[1] == 1


def test_an_edit_of_the_same_size_and_second_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    for answer in (1, 2):
        source.write_text(f"def load():\n    return {answer}\n")
        os.utime(source, (1_000_000_000, 1_000_000_000))
        assert families.resolve("model:load", tmp_path)() == answer
    assert not (tmp_path / "__pycache__").exists()


# --- precision --------------------------------------------------------------------------------------------------------


def with_precision(tmp_path, precision, kind="torch"):
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


def test_precision_is_part_of_a_variant(tmp_path):
    digests = set()
    for precision in ("fp32", "tf32", "fp16"):
        spec = with_precision(tmp_path, f'"{precision}"')
        assert [variant.precision for variant in spec.variants] == ["fp32", precision]
        digests.add(families.digest_of_variant(spec, "half"))
        digests.add(families.structure_of_variant(spec, "half"))
        digests.add(spec.digest)
    assert len(digests) == 9


def test_a_wrong_precision_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"variants\[1\].precision: 'fp61' is unknown .*fp16.*fp32, tf32, fp16"):
        with_precision(tmp_path, '"fp61"')
    with pytest.raises(ConfigError, match=r"variants\[1\].precision: 16 is unknown .*it is one of"):
        with_precision(tmp_path, "16")
    with pytest.raises(ConfigError, match="belongs to torch variants"):
        with_precision(tmp_path, '"fp16"', kind="python")
    made = msgspec.structs.replace(with_precision(tmp_path, '"fp16"'), digest="")
    wrong = msgspec.structs.replace(made.variants[1], precision="int4")
    with pytest.raises(ConfigError, match="'int4' is unknown"):
        families.load_family(msgspec.structs.replace(made, variants=(wrong,)))


def test_new_weights_leave_the_structure(tmp_path):
    weights = tmp_path / "w"
    weights.write_bytes(b"1")
    spec = with_precision(tmp_path, '"fp32"')
    with_weights = msgspec.structs.replace(spec.variants[1], weights="w", version="1")

    def seen(variant):
        return families.digest_of_variant(spec, variant), families.structure_of_variant(spec, variant)

    digest, structure = seen(with_weights)
    weights.write_bytes(b"2")
    (tmp_path / "v").write_bytes(b"2")
    for changed in (with_weights, msgspec.structs.replace(with_weights, weights="v", version="2")):
        assert seen(changed)[0] != digest
        assert seen(changed)[1] == structure
    other = msgspec.structs.replace(with_weights, parameters={"layers": "large"})
    assert seen(other)[1] != structure


def test_the_digest_of_a_family_without_confidence_is_what_it_was_before_there_was_any() -> None:
    spec = families.load_family(msgspec.structs.replace(fixture("simple"), folder=""))
    declared = msgspec.to_builtins(msgspec.structs.replace(spec, digest=""))
    assert declared.pop("confidence") is None
    assert spec.digest == hashlib.sha256(msgspec.json.encode(declared, order="sorted")).hexdigest()
