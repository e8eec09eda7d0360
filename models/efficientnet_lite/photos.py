"""Labelled photographs of yours, for `[evaluation]` (README.md says how).

They are files `photos/NUMBER-NAME.jpg`, where NUMBER is that of the class in `labels.txt`, from 0.  Every fourth one is
for calibration, the others are held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Return the photographs [rows, 1] as bytes, and the names of their classes."""
    names = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    every = sorted((folder / "photos").glob("[0-9]*-*"))
    files = [file for at, file in enumerate(every) if (at % 4 == 0) == (split == "calibration")]
    rows = np.empty((len(files), 1), object)
    rows[:, 0] = [file.read_bytes() for file in files]
    return [rows], np.array([names[int(file.name.partition("-")[0])] for file in files])
