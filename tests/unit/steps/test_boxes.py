"""Boxes: the best queries in pixels, and of boxes that cover each other the best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clover.steps.boxes import Boxes, sigmoid, suppress
from clover.steps.step import At

AT = At("logits", "boxes", None)


def row(step: Boxes, logits: Any, places: Any, **more: Any) -> dict[str, Any]:
    values = {"logits": np.array(logits, np.float32), "pred_boxes": np.array(places, np.float32), **more}
    step.row(values, AT)
    return values


def test_queries_become_boxes_in_pixels() -> None:
    """As D-FINE's own post-processing does it: the best pairs of query and class, over all of both."""
    generator = np.random.default_rng(0)
    logits, places = generator.normal(0, 3, (20, 5)), generator.random((20, 4))
    step = Boxes(size="image_size", threshold=0.5, most=8)
    found = row(step, logits, places, image_size=np.array([300, 400], np.int32))
    scores = (1 / (1 + np.exp(-logits))).reshape(-1)
    best = [at for at in np.argsort(-scores)[:8] if scores[at] >= 0.5]
    assert len(best) == 8
    np.testing.assert_allclose(found["scores"], scores[best], rtol=1e-5)
    assert found["classes"].tolist() == [at % 5 for at in best]
    x, y, w, h = places[[at // 5 for at in best]].T
    corners = np.stack([(x - w / 2) * 400, (y - h / 2) * 300, (x + w / 2) * 400, (y + h / 2) * 300], axis=1)
    np.testing.assert_allclose(found["boxes"], corners, atol=1e-3)


def test_what_is_left_over_is_said_to_be_empty() -> None:
    found = row(Boxes(most=3, threshold=0.6), [[4.0, -4.0], [0.0, 0.1]], np.full((2, 4), 0.5))
    assert found["classes"].tolist() == [0, -1, -1]
    assert found["scores"][1:].tolist() == [0.0, 0.0]
    assert not found["boxes"][1:].any()
    nothing = row(Boxes(most=2), [[np.nan, np.nan]], np.zeros((1, 4)))
    assert nothing["classes"].tolist() == [-1, -1]


def test_of_boxes_that_cover_each_other_the_best_stays() -> None:
    places = [[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10]]
    scores = [[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.0, 0.6]]
    step = Boxes(form="xyxy", activation="none", nms=0.5, most=4, scaled=True)
    found = row(step, scores, places)
    assert found["classes"].tolist() == [0, 0, 1, -1]
    np.testing.assert_allclose(found["scores"], [0.9, 0.7, 0.6, 0.0])


@pytest.mark.slow
def test_what_is_kept_is_as_torchvision_keeps_it() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    import torch

    generator = np.random.default_rng(0)
    for count in range(1, 40):
        corner = generator.random((count, 2))
        boxes = np.concatenate([corner, corner + generator.random((count, 2)) / 2], axis=1).astype(np.float32)
        classes, overlap = generator.integers(0, 2, count), float(generator.uniform(0.1, 0.9))
        scores = torch.arange(count, 0, -1).float()
        theirs = ops.batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(classes), overlap)
        assert suppress(boxes, classes, overlap, count) == theirs.tolist()


def test_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-1000, 0, 1000], np.float32)), [0, 0.5, 1])
