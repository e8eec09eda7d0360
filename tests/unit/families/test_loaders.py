"""The Python of a family is found in its folder, and read afresh when it was edited."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.errors import ConfigError
from tests.support.family_folder import BASE, model_of, write


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


def test_an_edit_of_the_same_size_and_second_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    for answer in (1, 2):
        source.write_text(f"def load():\n    return {answer}\n")
        os.utime(source, (1_000_000_000, 1_000_000_000))
        assert families.resolve("model:load", tmp_path)() == answer
    assert not (tmp_path / "__pycache__").exists()
