"""What the three workloads compute, for whoever imports torch: Clover's workers and the reference servers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from clover.types import VariantSpec


class Image(nn.Module):
    """A thousand means of an image's floats: every byte is read once."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(image.shape[0], 1176, 128).mean(2)[:, :1000]


def echo(variant: VariantSpec | None = None, folder: Path | None = None) -> nn.Module:
    """Return the rows [rows, 16] as they came."""
    return nn.Identity().eval()


def mlp(variant: VariantSpec | None = None, folder: Path | None = None) -> nn.Module:
    """Compute a 64-256-256-10 network with fixed weights."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def image(variant: VariantSpec | None = None, folder: Path | None = None) -> nn.Module:
    """Map images [rows, 3, 224, 224] to [rows, 1000]."""
    return Image().eval()
