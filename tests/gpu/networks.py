"""ResNet-50, EfficientNet-B0 and BERT-base by their shape, with random weights: how fast they are, not what they say.

Written with torch alone, as a machine with a GPU and no network may have nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clover import families
from clover.types import FamilySpec, TensorSpec, VariantSpec

_B0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5))
"""Of EfficientNet-B0's stages but the last: expansion, channels, blocks, stride, kernel (arXiv 1905.11946, table 1)."""


def _conv(
    given: int, made: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)]
    layers.append(nn.BatchNorm2d(made))
    return nn.Sequential(*layers, *([act()] if act else []))


class _Residual(nn.Module):
    """What `inner` makes, beside its input or `outer` of that."""

    def __init__(self, inner: nn.Module, outer: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer, self.last = inner, outer, last

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.inner(x) + self.outer(x))


class _Excite(nn.Module):
    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        parts = (nn.Conv2d(wide, narrow, 1), nn.SiLU(), nn.Conv2d(narrow, wide, 1), nn.Sigmoid())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *parts)

    def forward(self, x: torch.Tensor) -> Any:
        return x * self.gate(x)


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]


def resnet50(variant: Any, folder: Any) -> nn.Module:
    """4.1 G multiply-adds a picture."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            ways = _conv(given, width), _conv(width, width, 3, stride), _conv(width, 4 * width, act=None)
            outer = _conv(given, 4 * width, 1, stride, act=None) if not block else nn.Identity()
            layers.append(_Residual(nn.Sequential(*ways), outer, nn.ReLU()))
            given = 4 * width
    return nn.Sequential(*layers, *_head(given))


def efficientnet_b0(variant: Any, folder: Any) -> nn.Module:
    """0.39 G multiply-adds a picture."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.SiLU)]
    given = 32
    for expansion, made, blocks, first, kernel in (*_B0, (6, 320, 1, 1, 3)):
        for block in range(blocks):
            stride, wide = first if not block else 1, given * expansion
            parts = [_conv(given, wide, act=nn.SiLU)] if expansion > 1 else []
            parts += [_conv(wide, wide, kernel, stride, wide, act=nn.SiLU)]
            inner = nn.Sequential(*parts, _Excite(wide, given // 4), _conv(wide, made, act=None))
            same = stride == 1 and given == made
            layers.append(_Residual(inner, nn.Identity(), nn.Identity()) if same else inner)
            given = made
    return nn.Sequential(*layers, _conv(given, 1280, act=nn.SiLU), *_head(1280))


class _Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 768), nn.Parameter(torch.zeros(128, 768))
        layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(self.words(x) + self.places).mean(1)


def bert_base(variant: Any, folder: Any) -> nn.Module:
    """128 tokens a row: 11 G multiply-adds."""
    return _Bert()


NETWORKS = {"resnet50": 1000, "efficientnet_b0": 1000, "bert_base": 768}
"""With the width of the answer."""


def family(name: str, max_batch: int = 32) -> FamilySpec:
    """Return a family of one network."""
    words = name == "bert_base"
    taken = TensorSpec(name="x", datatype="INT64" if words else "FP32", shape=(128,) if words else (3, 224, 224))
    return families.load_family(
        FamilySpec(
            name=name,
            inputs=(taken,),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(NETWORKS[name],)),),
            variants=(VariantSpec(name=name, loader=f"tests.gpu.networks:{name}"),),
            max_batch=max_batch,
            folder=str(Path(__file__).parent),
        )
    )
