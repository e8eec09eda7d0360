"""EfficientNet as torchvision builds it, with its published weights if they were fetched, else with random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from clover.models.networks import same_random_weights, weights_of
from torch import nn

from clover.errors import ConfigError

if TYPE_CHECKING:
    from clover.types import VariantSpec

INSTALL = "pip install 'clover-inference[models]'"


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
        if state is None:
            _spread(model)
    if state is not None:
        model.load_state_dict(state)
    return model.eval()


def _spread(model: nn.Module) -> None:
    """Let the answers of an untrained network depend on the picture.

    As torchvision begins, depthwise convolutions shrink what they are given by the root of their channels, and others
    halve it: logits would be 1e-14, and every picture would get the same probabilities.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for one in convolutions:
            one.weight *= one.groups**0.5
        classifier.weight /= model.eval()(torch.randn(1, 3, 64, 64)).std()
