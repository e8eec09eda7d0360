"""Labelled rows of a family, as arrays that match its declaration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.families.declaration import DATATYPES, FILE, SPLITS
from clover.families.loaders import describe_failure, resolve
from clover.steps import application_inputs
from clover.types import FamilySpec, TensorSpec


def load_evaluation(spec: FamilySpec, split: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Return the labelled rows of `split` ("calibration" or "held_out"): one array [rows, ...] per input, and labels.

    The inputs are as an application has them, before any step: `clover.steps.as_sent` makes of them what clients send.

    Raises ConfigError if the family has no such rows, if what its loader returns does not match the declaration, or if
    the loader imports torch.
    """
    return check_rows(spec, *load_rows(spec, split), _where(spec))


def load_rows(spec: FamilySpec, split: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Return what the loader of `spec` gives for `split`, as arrays.  Raises ConfigError if the loader cannot be
    used."""
    if spec.evaluation is None:
        raise ConfigError(f"family {spec.name!r} has no evaluation set: add [evaluation] to its {FILE}")
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: it is one of {', '.join(SPLITS)}")
    where = _where(spec)
    had_torch = "torch" in sys.modules
    try:
        load = resolve(spec.evaluation.loader, spec.folder)
        inputs, labels = load(Path(spec.folder), split)
    except (ImportError, SystemExit) as error:  # a package is missing; the loader may say which
        raise ConfigError(f"{where}: {describe_failure(error)}") from error
    if not had_torch and "torch" in sys.modules:
        raise ConfigError(
            f"{where}: imports torch, which the server must not: keep the loader in a module that needs only NumPy"
        )
    return [np.asarray(array) for array in inputs], np.asarray(labels)


def _where(spec: FamilySpec) -> str:
    return f"family {spec.name!r}: evaluation loader {spec.evaluation.loader if spec.evaluation else ''!r}"


def check_rows(
    spec: FamilySpec, arrays: list[NDArray[Any]], truth: NDArray[Any], where: str
) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Return labelled rows as they are if they match the declaration of `spec`; raises ConfigError, which begins with
    `where`."""
    wanted = application_inputs(spec)
    if len(arrays) != len(wanted):
        raise ConfigError(f"{where}: gave {len(arrays)} arrays for {len(wanted)} inputs")
    if truth.ndim == 0 or len(truth) == 0:
        raise ConfigError(f"{where}: gave no labels")
    for tensor, array in zip(wanted, arrays, strict=True):
        _check_rows(tensor, array, len(truth), where)
    return arrays, truth


def _check_rows(tensor: TensorSpec, array: NDArray[Any], rows: int, where: str) -> None:
    """Raise ConfigError unless `array` holds `rows` rows of `tensor`, in its datatype and shape."""
    if array.dtype != DATATYPES[tensor.datatype]:
        expected = DATATYPES[tensor.datatype]
        raise ConfigError(f"{where}: {tensor.name}: is {array.dtype}, {tensor.datatype} is held as {expected}")
    if array.ndim == 0 or array.shape[0] != rows:
        raise ConfigError(f"{where}: {tensor.name}: shape {array.shape} does not have one row per label ({rows})")
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        axis == size or (axis == -1 and size <= most)
        for axis, size, most in zip(tensor.shape, shape, tensor.bound, strict=True)
    )
    if not fits:
        raise ConfigError(f"{where}: {tensor.name}: rows of shape {list(shape)} do not fit {list(tensor.shape)}")
