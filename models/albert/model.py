"""ALBERT with a head for spans, as transformers builds it, with its published weights if they were fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clover.models.networks import of_transformers
from torch import Tensor, nn

from clover.errors import ConfigError

if TYPE_CHECKING:
    from clover.types import VariantSpec


class Spans(nn.Module):
    """Scores of where the answer starts and ends, [rows, tokens] each, of ids, mask and types [rows, tokens]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores."""
        found = self.network(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return found.start_logits, found.end_logits


def load(variant: VariantSpec, folder: Path) -> nn.Module:
    """Return a variant's network."""
    try:
        from transformers import AlbertConfig, AlbertForQuestionAnswering
    except ModuleNotFoundError as error:
        raise ConfigError(f"{variant.name} needs transformers: pip install 'clover-inference[models]'") from error
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    size: dict[str, Any] = {key: variant.parameters[key] for key in sizes}
    configuration = AlbertConfig(
        vocab_size=30_000,
        embedding_size=128,
        intermediate_size=4 * int(size["hidden_size"]),
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **size,
    )
    return Spans(of_transformers(variant, AlbertForQuestionAnswering, configuration)).eval()
