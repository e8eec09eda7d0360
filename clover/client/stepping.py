"""The steps of a model that its client runs (`clover.steps.ClientSteps`), between the caller's tensors and the wire's.

The packages that a step needs (pillow, tokenizers) have to be installed on the client's machine.  The files that it
needs lie in the family's folder, which the caller names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.client.tensors import TensorInfo
from clover.errors import BadRequest, ModelFailed
from clover.steps import BadRow, ClientSteps, PreparedRows
from clover.types import TensorSpec


class OwnSteps:
    """The client's part of a model's steps.  `inputs` and `outputs` are what the caller gives and gets."""

    def __init__(self, steps: ClientSteps) -> None:
        self._steps = steps
        self.inputs = tuple(map(_info, steps.inputs))
        self.outputs = tuple(map(_info, steps.outputs))

    def before(self, columns: Mapping[str, NDArray[Any]]) -> PreparedRows:
        """Return the rows as they are sent; raises BadRequest for a row that a step cannot take."""
        try:
            return self._steps.before(columns)
        except BadRow as error:
            raise BadRequest(f"a row is refused: {error}") from error

    def after(self, sent: PreparedRows, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs that the caller gets, by name with a leading row axis; raises ModelFailed if the answer is
        none that the steps can take."""
        try:
            return {name: np.asarray(column) for name, column in self._steps.after(sent, outputs).items()}
        except BadRow as error:
            raise ModelFailed(f"an answer is refused by a step: {error}") from error


def steps_of(said: Mapping[str, Any], folder: Path | None) -> OwnSteps | None:
    """Return the client's steps of a model whose metadata is `said`; None if it has none.

    Raises ConfigError if they cannot be run here.
    """
    steps = ClientSteps.from_metadata(said, folder)
    return None if steps is None else OwnSteps(steps)


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.datatype, tensor.shape, tensor.labels)
