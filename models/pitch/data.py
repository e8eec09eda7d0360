"""Tones in noise whose pitch is known exactly, because they are made here; NumPy only.

A tone is a sum of harmonics of a fundamental between `LOWEST` and `HIGHEST` hertz (even on a logarithmic scale), with
random phases and strengths that fall with their number; the fundamental is never silent.  White noise is added so that
the ratio of signal to noise is even between `SNR_DB` decibels, and the sum is scaled to a root mean square of 0.1.
The two splits differ in their seed.  A tone is not a voice: nothing here glides, and there is no silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE, SAMPLES = 16_000, 2048
LOWEST, HIGHEST = 60.0, 1200.0
SNR_DB = (-5.0, 20.0)
ROWS = {"calibration": 600, "held_out": 1200}
SEEDS = {"calibration": 1, "held_out": 2}


def tone(generator: np.random.RandomState) -> tuple[NDArray[np.float32], float]:
    """Return one sound, float32 [2048] at 16 kHz, and its pitch in hertz."""
    hertz = float(np.exp(generator.uniform(np.log(LOWEST), np.log(HIGHEST))))
    harmonics = np.arange(1, 1 + min(12, int(0.47 * SAMPLE_RATE / hertz)))
    strengths = generator.random_sample(len(harmonics)) * harmonics ** -generator.uniform(0.5, 1.5)
    strengths[0] = max(strengths[0], 0.1)
    phases = generator.uniform(0.0, 2.0 * np.pi, len(harmonics))
    turns = np.outer(harmonics, np.arange(SAMPLES)) * (hertz / SAMPLE_RATE)
    clean = strengths @ np.sin(2.0 * np.pi * turns + phases[:, None])
    noise = generator.standard_normal(SAMPLES) * 10.0 ** (-generator.uniform(*SNR_DB) / 20.0)
    sound = clean / clean.std() + noise
    return (0.1 * sound / sound.std()).astype(np.float32), hertz


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """Return the sounds of `split` ("calibration" or "held_out") in `[samples]`, and their pitches in hertz."""
    # RandomState, unlike default_rng, is frozen: the same seed gives the same tones in every NumPy.
    generator = np.random.RandomState(SEEDS[split])
    made = [tone(generator) for _ in range(ROWS[split])]
    return [np.stack([sound for sound, _ in made])], np.array([hertz for _, hertz in made])
