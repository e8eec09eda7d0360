"""EfficientNet as torchvision builds it, with its published weights if they were fetched, else with random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clover.models.networks import same_random_weights, weights_of

from clover.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from clover.types import VariantSpec

INSTALL = "pip install 'clover-inference[efficientnet]'"


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return a variant's network: pixels [rows, 3, size, size] in, logits [rows, 1000] out."""
    try:
        from torchvision.models import efficientnet
    except ModuleNotFoundError as error:
        raise ConfigError(f"{variant.name} needs torchvision: {INSTALL}") from error
    build = getattr(efficientnet, f"efficientnet_{variant.name}")
    state = weights_of(variant)
    with same_random_weights():
        model: nn.Module = build(weights=None)
    if state is not None:
        model.load_state_dict(state)
    return model.eval()
