"""Three untrained networks over images of 28 x 28: one wide, one deep, one that attends.

What loading takes is modules, memory, and weights that a generator draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Attending(nn.Module):
    """Encoder layers over 49 patches of 4 x 4."""

    def __init__(self, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = self.patches(image).flatten(2).transpose(1, 2)
        return torch.softmax(self.head(self.encoder(rows).mean(1)), dim=1)


def wide(width: int = 2048) -> nn.Module:
    """Return three square layers."""
    layers = (nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(*layers, nn.Softmax(dim=1))


def deep(width: int = 64, blocks: int = 18) -> nn.Module:
    """Return convolutions with batch norm at 7 x 7."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=4)]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10), nn.Softmax(dim=1))


def load(variant: Any, folder: Path) -> nn.Module:
    """Return the network that the variant's parameters name."""
    kinds = {"wide": wide, "deep": deep, "attending": Attending}
    torch.manual_seed(0)  # every process has the same weights
    return kinds[variant.parameters["kind"]]().eval()
