"""Families are found by a shipped name, a folder, or module:attribute."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clover import families
from clover.errors import ConfigError
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.support.family_folder import BASE, NAMES, fixture, model_of, write


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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("clover.families.find.__file__", str(tmp_path / "clover" / "families" / "find.py"))
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
