"""The mean of a picture, as two logits."""

from __future__ import annotations

from pathlib import Path

import torch

from clover.types import VariantSpec


class Shade(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = pixels.mean(dim=(1, 2, 3))
        return torch.stack([-8 * mean, 8 * mean], dim=1)


def load(variant: VariantSpec, folder: Path) -> torch.nn.Module:
    return Shade().eval()
