"""Static embeddings of `wordllama`, cut to 64, 128 or all 256 numbers.

A text is cut into tokens; the vectors of its tokens are averaged, the first `numbers` of them kept and scaled to length
1.  The vectors were trained so that their first numbers alone serve as well as they can (Matryoshka).  Every variant
answers 256 numbers, zeros after its own, so that its vectors may be compared with those of another: the product of two
is then the product of what both have.

The package is not imported, only its two files are read: importing it changes the logging of the whole process, and
loading by it may ask the network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

WIDEST = 256
WEIGHTS, TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


@cache
def vocabulary() -> tuple[Any, NDArray[np.float32]]:
    """Return the tokenizer, and the vectors [tokens, 256], which all variants in this process share.

    Raises ModuleNotFoundError, with what to install, if a package is missing.
    """
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        found = importlib.util.find_spec("wordllama")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("wordllama", name="wordllama")
    except ModuleNotFoundError as error:
        text = f"the family embedding needs {error.name}"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name=error.name) from error
    folder = Path(found.origin).parent
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, np.ascontiguousarray(load_file(folder / WEIGHTS)["embedding.weight"], np.float32)


class Embedder:
    """One variant: texts to vectors of length 1, of which the first `numbers` are not 0."""

    def __init__(self, numbers: int) -> None:
        self._tokenizer, vectors = vocabulary()
        self._vectors = vectors[:, :numbers]
        self._numbers = numbers

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 [texts, 256]; zeros for a text without a token."""
        found = np.zeros((len(texts), WIDEST), np.float32)
        for row, text in zip(found, texts, strict=True):
            # One by one: a batch would be shared out among threads of the library's own.
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
            if tokens:
                mean = self._vectors[tokens].mean(axis=0)
                row[: self._numbers] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return found


def load(variant: VariantSpec, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the variant.  Raises ModuleNotFoundError, with what to install, if a package is missing."""
    embedder = Embedder(int(variant.parameters["numbers"]))
    return lambda inputs: [embedder.vectors([bytes(row).decode("utf-8", "replace") for row in inputs[0][:, 0]])]
