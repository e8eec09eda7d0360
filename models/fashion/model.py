"""The five variants of the `fashion` family: plain convolutions, 28 x 28 grey images in, ten probabilities out.

Each variant spends roughly four times the arithmetic of the one before.  What is served is convolution + bias + ReLU
only: training uses batch normalisation and folds it into the weights before they are written (see `train.py`), so that
no backend has to be trusted with folding it.  Normalisation of the pixels and the softmax are part of the network:
clients send values 0..1 and read probabilities.  Only operations that export with a dynamic batch axis are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from clover.types import VariantSpec

PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
"""Mean and standard deviation of the 60,000 training images, pixels in 0..1."""

CLASSES = 10


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU()]


def _tiny() -> list[nn.Module]:
    return [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(14 * 14, 16), nn.ReLU(), nn.Linear(16, CLASSES)]


def _small() -> list[nn.Module]:
    return [
        *_convolution(1, 8, stride=2),
        *_convolution(8, 16, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, CLASSES),
    ]


def _medium() -> list[nn.Module]:
    return [
        *_convolution(1, 16, stride=2),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 32),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, CLASSES),
    ]


def _large() -> list[nn.Module]:
    return [
        *_convolution(1, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 64),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, CLASSES),
    ]


def _xlarge() -> list[nn.Module]:
    return [
        *_convolution(1, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        *_convolution(128, 128),
        nn.AvgPool2d(7),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    ]


LAYERS = {"tiny": _tiny, "small": _small, "medium": _medium, "large": _large, "xlarge": _xlarge}
"""Layers of every variant by name, cheapest first."""


class Classifier(nn.Module):
    """float32 `[batch, 1, 28, 28]` in 0..1 -> float32 probabilities `[batch, 10]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(*LAYERS[name]())

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores before the softmax, `[batch, 10]`."""
        scores: torch.Tensor = self.layers((image - PIXEL_MEAN) / PIXEL_STD)
        return scores

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(image), dim=1)


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return the trained network of `variant`, in eval mode, computing in float32 (weights are stored as float16).

    `parameters.layers` names its layers if the name of the variant does not, as for one in another precision.
    """
    from safetensors.torch import load_file

    model = Classifier(str(variant.parameters.get("layers", variant.name)))
    state = {name: tensor.float() for name, tensor in load_file(folder / variant.weights).items()}
    model.load_state_dict(state)
    return model.eval()
