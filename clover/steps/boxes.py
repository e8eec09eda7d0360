"""The step from a detector's queries or anchors to boxes on the client's picture."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps.arithmetic import softmax
from clover.steps.step import At, DataStep, fix_shape, read_tensor
from clover.types import TensorSpec

_FLOATS = ("FP16", "FP32", "FP64")


class Boxes(DataStep, frozen=True, kw_only=True):
    """Scores [n, classes] and places [n, 4] of a detector to the best `most` boxes: "boxes" FP32 [most, 4] (left, top,
    right, bottom in pixels), "scores" FP32 [most] and "classes" INT64 [most].

    Boxes below `threshold` are left out, and unused places have class -1 and score 0.  `form` is the form of the
    places, in parts of the picture's width and height (with `scaled`, in pixels).  `activation` turns logits into
    scores.  `size` names the tensor with the picture's height and width.  Without `nms` the best pairs of box and class
    are taken as they are (for D-FINE and DETR).  With it, a box is left out if it overlaps a better one of its class by
    more than `nms` (intersection over union).
    """

    places: str = "pred_boxes"
    size: str = ""
    form: Literal["cxcywh", "xyxy"] = "cxcywh"
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    scaled: bool = False
    threshold: float = 0.3
    nms: float = 0.0
    most: int = 100
    by_row: ClassVar[bool] = True

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or "boxes"

    def also_reads(self) -> tuple[str, ...]:
        """Return the places, and the size of the picture."""
        return (self.places, self.size) if self.size else (self.places,)

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        scores, places = read_tensor(tensors, at.source, _FLOATS), read_tensor(tensors, self.places, _FLOATS)
        if (
            len(scores.shape) != 2
            or len(places.shape) != 2
            or places.shape[1] != 4
            or scores.shape[0] != places.shape[0]
        ):
            raise ConfigError(
                f"it takes scores [n, classes] and places [n, 4], not {list(scores.shape)} and {list(places.shape)}"
            )
        if self.size and read_tensor(tensors, self.size, ("INT32",)).shape != (2,):
            raise ConfigError(f"size: {self.size!r} is not a height and a width")
        if not 0 <= self.nms <= 1 or not 1 <= self.most <= 10_000:
            raise ConfigError("nms is 0 to 1, most is 1 to 10000")
        tensors[at.target] = fix_shape(at.target, "FP32", (self.most, 4))
        tensors["scores"] = fix_shape("scores", "FP32", (self.most,))
        tensors["classes"] = fix_shape("classes", "INT64", (self.most,))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        logits = np.asarray(values[at.source], np.float32)
        scores = (
            logits
            if self.activation == "none"
            else softmax(logits)
            if self.activation == "softmax"
            else sigmoid(logits)
        )
        boxes = self._corners(np.asarray(values[self.places], np.float32), values)
        flat = np.nan_to_num(scores).reshape(-1)
        order = np.argsort(-flat, kind="stable")[: self.most * (20 if self.nms else 1)]
        order = order[flat[order] >= self.threshold]
        classes, found = order % scores.shape[1], boxes[order // scores.shape[1]]
        if self.nms:
            kept = suppress(found, classes, self.nms, self.most)
            order, classes, found = order[kept], classes[kept], found[kept]
        made, best, kinds = (
            np.zeros((self.most, 4), np.float32),
            np.zeros(self.most, np.float32),
            np.full(self.most, -1),
        )
        made[: len(found)], best[: len(found)], kinds[: len(found)] = found, flat[order], classes
        values.update({at.target: made, "scores": best, "classes": kinds.astype(np.int64)})

    def _corners(self, places: NDArray[np.float32], values: dict[str, Any]) -> NDArray[np.float32]:
        """Return places [n, 4] as left, top, right, bottom in pixels of the picture."""
        corners = places
        if self.form == "cxcywh":
            half = places[:, 2:] / 2
            corners = np.concatenate([places[:, :2] - half, places[:, :2] + half], axis=1)
        if not self.size or self.scaled:
            return corners
        height, width = values[self.size]
        return corners * np.array([width, height, width, height], np.float32)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(-logits))."""
    found: NDArray[np.float32] = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return found


def suppress(boxes: NDArray[np.float32], classes: NDArray[Any], overlap: float, most: int) -> list[int]:
    """Return the places of at most `most` boxes [n, 4], best first, that cover no better one of their class by more
    than `overlap`."""
    area = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        corner, end = np.maximum(boxes[left, :2], boxes[best, :2]), np.minimum(boxes[left, 2:], boxes[best, 2:])
        common = (end - corner).clip(0).prod(axis=1)
        union = area[left] + area[best] - common
        covers = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
        left = left[(covers <= overlap) | (classes[left] != classes[best])]
    return kept
