"""D-FINE as transformers builds it, with its published weights if they were fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clover.models.networks import of_transformers
from torch import Tensor, nn

from clover.errors import ConfigError

if TYPE_CHECKING:
    from clover.types import VariantSpec

_NARROW = {
    "hidden_sizes": [128, 256, 512, 1024],
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
}
"""The backbone of n and s, HGNet-v2 B0."""

BACKBONES: dict[str, dict[str, Any]] = {
    "n": {**_NARROW, "out_indices": [3, 4]},
    "s": _NARROW,
    "m": {
        "hidden_sizes": [192, 384, 768, 1536],
        "stem_channels": [3, 24, 32],
        "stage_in_channels": [32, 96, 384, 768],
        "stage_mid_channels": [32, 64, 128, 256],
        "stage_out_channels": [96, 384, 768, 1536],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [4, 4, 4, 4],
        "use_learnable_affine_block": True,
    },
    "l": {
        "hidden_sizes": [256, 512, 1024, 2048],
        "stem_channels": [3, 32, 48],
        "stage_in_channels": [48, 128, 512, 1024],
        "stage_mid_channels": [48, 96, 192, 384],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [6, 6, 6, 6],
    },
    "x": {
        "hidden_sizes": [256, 512, 1024, 2048],
        "stem_channels": [3, 32, 64],
        "stage_in_channels": [64, 128, 512, 1024],
        "stage_mid_channels": [64, 128, 256, 512],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 2, 5, 2],
        "stage_numb_of_layers": [6, 6, 6, 6],
    },
}
"""What tells the backbones of the variants apart, as the published weights have it."""

REST: dict[str, dict[str, Any]] = {
    "n": {
        "encoder_in_channels": [512, 1024],
        "encoder_hidden_dim": 128,
        "encoder_ffn_dim": 512,
        "encode_proj_layers": [1],
        "feat_strides": [16, 32],
        "num_feature_levels": 2,
        "d_model": 128,
        "decoder_in_channels": [128, 128],
        "decoder_ffn_dim": 512,
        "decoder_n_points": [6, 6],
        "decoder_layers": 3,
        "hidden_expansion": 0.34,
        "depth_mult": 0.5,
    },
    "s": {
        "encoder_in_channels": [256, 512, 1024],
        "decoder_layers": 3,
        "hidden_expansion": 0.5,
        "depth_mult": 0.34,
    },
    "m": {"encoder_in_channels": [384, 768, 1536], "decoder_layers": 4, "depth_mult": 0.67},
    "l": {"encoder_in_channels": [512, 1024, 2048]},
    "x": {
        "encoder_in_channels": [512, 1024, 2048],
        "encoder_hidden_dim": 384,
        "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384, 384, 384],
    },
}
"""The same of encoder and decoder."""


class Queries(nn.Module):
    """Logits [rows, queries, 80] and places [rows, queries, 4] of pixels [rows, 3, size, size]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and places (centre, width and height as parts of the picture's)."""
        found = self.network(pixel_values=pixels)
        return found.logits, found.pred_boxes


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return a variant's network."""
    try:
        from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config
    except ModuleNotFoundError as error:
        raise ConfigError(f"{variant.name} needs transformers: pip install 'clover-inference[models]'") from error
    name = str(variant.parameters["size"])
    backbone: dict[str, Any] = {
        "out_indices": [2, 3, 4],
        "stage_light_block": [False, False, True, True],
        **BACKBONES[name],
    }
    rest: dict[str, Any] = {"num_labels": 80, "decoder_n_points": [3, 6, 3], **REST[name]}
    backbone["stage_downsample"] = [False, True, True, True]
    configuration = DFineConfig(backbone_config=HGNetV2Config(**backbone), **rest)
    return Queries(of_transformers(variant, DFineForObjectDetection, configuration)).eval()
