"""The cheapest variant: the lag at which a sound resembles itself most, by two Fourier transforms.

The autocorrelation is divided by that of the window, so that long lags are not at a disadvantage.  Of all peaks nearly
as high as the highest the first is taken, as multiples of the period resemble each other as well as the period does; a
parabola through its neighbours gives the lag between samples.  The height of the peak is the confidence: 1 for a sound
that repeats exactly, about the share of the signal in the power otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

RATE, SAMPLES = 16_000, 2048
SHORTEST, LONGEST = 11, 320
"""Lags that are looked at: 1455 to 50 hertz."""
NEARLY = 0.8
"""Part of the height of the highest peak that an earlier one must have to be taken instead: chosen on the calibration
tones (0.9 takes many tones an octave too low, 0.7 some an octave too high)."""

_SIZE = 4096
_WINDOW = np.hanning(SAMPLES).astype(np.float32)


def _correlated(sounds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the autocorrelations [rows, LONGEST + 2] of sounds [rows, SAMPLES]."""
    spectrum = np.fft.rfft(sounds, _SIZE)
    return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, _SIZE)[:, : LONGEST + 2].astype(np.float32)


_OF_WINDOW = _correlated(_WINDOW[None])[0]


def pitches(sounds: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return hertz and confidence, each float32 [rows, 1], of sounds [rows, SAMPLES]."""
    centred = (sounds - sounds.mean(axis=1, keepdims=True)) * _WINDOW
    alike = _correlated(centred) / _OF_WINDOW
    alike /= np.maximum(alike[:, :1], 1e-12)
    inner = alike[:, SHORTEST : LONGEST + 1]
    peaks = (inner >= alike[:, SHORTEST - 1 : LONGEST]) & (inner > alike[:, SHORTEST + 1 : LONGEST + 2])
    heights = np.where(peaks, inner, -1.0)
    first = (heights >= NEARLY * np.maximum(heights.max(axis=1, keepdims=True), 1e-6)).argmax(axis=1)
    lag = first + SHORTEST
    rows = np.arange(len(sounds))
    before, here, after = (alike[rows, lag + step] for step in (-1, 0, 1))
    bend = before - 2.0 * here + after
    shift = np.where(np.abs(bend) > 1e-12, 0.5 * (before - after) / np.where(bend == 0.0, 1.0, bend), 0.0)
    hertz = RATE / (lag + np.clip(shift, -0.5, 0.5))
    return hertz.astype(np.float32)[:, None], np.clip(here, 0.0, 1.0).astype(np.float32)[:, None]


def load(variant: VariantSpec, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the variant; it has no weights."""
    return lambda inputs: list(pitches(inputs[0]))
