"""D-FINE finds the boxes that transformers finds, and says what it lacks."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clover import families, steps
from clover.errors import ConfigError
from clover.families import published
from clover.http.api.metadata import model_metadata
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


ONE_STEP = 1.01 / 255
"""transformers resizes with torchvision, whose bytes may be rounded to the next ones."""


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a torch home in which nothing was fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_without_its_weights_it_says_untrained(bare_home: Path) -> None:
    spec = families.load_family("detection")
    assert model_metadata("detection", spec, ("1",))["parameters"]["untrained"] == ["n", "s", "m", "l", "x"]
    last = spec.variants[-1].accuracy
    assert last is not None
    assert (last.value, last.source) == (0.0, "UNTRAINED: random weights (trained: 55.8 %)")
    assert len((Path(spec.folder) / "labels.txt").read_text().splitlines()) == 80


def test_n_is_pinned_by_the_family_and_the_others_by_whoever_fetches_them(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = families.load_family("detection")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(b"other weights"))
    assert published.fetch_of(spec, ["n", "s"]) == 3
    error = capsys.readouterr().err
    assert "and 19e06bdc873da819920a8d373b879721a5b9759d822f8213220bb09abbdab58b is pinned" in error
    assert "s: no revision is pinned: choose a commit of https://huggingface.co/ustc-community/dfine-sm" in error
    assert list(bare_home.iterdir()) == []
    assert published.fetch_of(spec, [f"s@{'0123456789' * 4}"]) == 0
    assert [one.untrained for one in families.load_family("detection").variants] == [True, False, True, True, True]
    (bare_home / "ustc-community--dfine-small-coco--model.safetensors").write_bytes(b"changed")
    with pytest.raises(ConfigError, match="is pinned: delete it"):
        published.file_of(families.load_family("detection").variants[1].published)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(300)  # importing transformers on a busy machine
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_it_finds_what_transformers_finds(bare_home: Path) -> None:
    spec = families.load_family("detection")
    variant, folder = spec.variant("n"), Path(spec.folder)
    model = families.resolve(variant.loader, folder)(variant, folder)
    transformers = importlib.import_module("transformers")
    assert 3.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 3.8e6
    image = Image.effect_mandelbrot((400, 300), (-2, -1, 1, 1), 60).convert("RGB")
    file, rows = io.BytesIO(), np.empty((1, 1), object)
    image.save(file, "PNG")
    rows[0, 0] = file.getvalue()
    plan = steps.plan_for(spec, variant)
    assert plan is not None
    before = plan.worker_before.apply({"image": rows}, 1)
    assert not before.refused
    pixels = torch.from_numpy(steps.stack_rows(before.columns[plan.taken[0]]))
    with torch.inference_mode():
        logits, boxes = model(pixels)
    logits = logits + 4  # random weights are sure of nothing
    after = plan.worker_after.apply({**before.columns, "logits": logits.numpy(), "pred_boxes": boxes.numpy()}, 1)

    theirs = np.asarray(image.resize((640, 640), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels[0].numpy(), theirs, atol=1e-6)
    processor = transformers.RTDetrImageProcessor()  # D-FINE's own
    given = processor(images=image, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels.numpy(), given.numpy(), atol=ONE_STEP)
    library = transformers.DFineForObjectDetection(model.network.config).eval()
    library.load_state_dict(model.network.state_dict())
    with torch.inference_mode():
        answer = library(pixel_values=pixels)
    answer.logits = answer.logits + 4
    (expected,) = processor.post_process_object_detection(answer, threshold=0.3, target_sizes=[(300, 400)])
    found = {name: after.columns[name][0] for name in ("classes", "boxes", "scores")}
    assert len(expected["scores"]) >= 100, "of 300 queries the best 100 are given"
    assert found["scores"].min() > 0.3
    np.testing.assert_allclose(found["scores"], expected["scores"][:100].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected["boxes"][:100].numpy(), atol=1e-2)
    np.testing.assert_array_equal(found["classes"], expected["labels"][:100].numpy())
