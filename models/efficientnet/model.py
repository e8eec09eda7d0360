"""EfficientNet as torchvision builds it, with its published weights if they were fetched, else with random ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from clover.errors import ConfigError
from clover.families import published

if TYPE_CHECKING:
    from clover.types import VariantSpec

_log = logging.getLogger("clover.models.efficientnet")

INSTALL = "pip install 'clover-inference[efficientnet]'"


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return a variant's network: pixels [rows, 3, size, size] in, logits [rows, 1000] out."""
    try:
        from torchvision.models import efficientnet
    except ModuleNotFoundError as error:
        raise ConfigError(f"{variant.name} needs torchvision: {INSTALL}") from error
    build = getattr(efficientnet, f"efficientnet_{variant.name}")
    if variant.untrained or variant.published is None:
        _log.warning("%s is UNTRAINED: it answers with random weights", variant.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every worker gets the same
            model: nn.Module = build(weights=None)
        return model.eval()
    model = build(weights=None)
    model.load_state_dict(torch.load(published.file_of(variant.published), map_location="cpu", weights_only=True))
    return model.eval()
