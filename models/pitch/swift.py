"""SwiftF0, as its package has it: one small network over a spectrogram, in ONNX Runtime.

The network takes one sound at a time, so a batch costs what its sounds cost.  It answers a pitch every 16 ms; a sound
of 128 ms gets the median of the frames in its middle, whose surroundings are all there.  Sessions do not spin while
they wait, and have as many threads as the worker is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

FRAMES = slice(3, 6)
DITHER = 1e-5 * np.random.RandomState(0).standard_normal(2048).astype(np.float32)
"""Added to every sound, always the same: of a tone without any noise the network makes nonsense (14 of 40 tones right;
with noise 80 dB below the tone, all 40)."""


def load(variant: VariantSpec, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the variant.  Raises ModuleNotFoundError, with what to install, if its package is missing."""
    import torch

    try:
        from swift_f0 import FMAX, FMIN, SwiftF0
    except ModuleNotFoundError as error:
        text = f"the variant swift of the family pitch needs {error.name}"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name=error.name) from error

    session = SwiftF0(threads=torch.get_num_threads(), spin=False).session
    lowest, highest = np.asarray(FMIN, np.float32), np.asarray(FMAX, np.float32)

    def answer(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        of = ({"audio": (sound + DITHER)[None], "fmin": lowest, "fmax": highest} for sound in inputs[0])
        found = [session.run(["pitch", "confidence"], feed) for feed in of]
        pitch, sure = (np.concatenate([row[index][:, FRAMES] for row in found]).astype(np.float32) for index in (0, 1))
        return [np.median(pitch, axis=1, keepdims=True), sure.mean(axis=1, keepdims=True)]

    return answer
