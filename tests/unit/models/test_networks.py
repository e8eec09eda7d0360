"""What networks of other libraries need of this process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # networks.py imports torch


@pytest.fixture
def networks() -> ModuleType:
    """The module, which hid torchaudio when it was imported; now what a test says of this process counts."""
    return importlib.import_module("clover.models.networks")


def test_a_torchaudio_that_cannot_be_loaded_is_not_imported(
    networks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio.py").write_text("raise OSError('libc10_cuda.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchaudio", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(OSError, match="libc10_cuda"):
        importlib.import_module("torchaudio")
    networks.hide_torchaudio()
    assert importlib.util.find_spec("torchaudio") is None  # what transformers asks before it imports it
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torchaudio")


def test_a_torchaudio_that_transformers_has_found_stays(networks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    networks.hide_torchaudio()
    assert "torchaudio" not in sys.modules


def test_a_torchaudio_that_is_in_use_stays(networks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    used = ModuleType("torchaudio")
    monkeypatch.setitem(sys.modules, "torchaudio", used)
    networks.hide_torchaudio()
    assert sys.modules["torchaudio"] is used
