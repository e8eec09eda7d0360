"""The rows that a family is measured with: its labelled evaluation set, or made-up rows of the declared shape.

What steps before the model cost a row is measured here, apart from the model.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import energy, families, steps
from clover.config import EnergyConfig
from clover.errors import ConfigError
from clover.profiling.evaluation_process import EvaluationProcess
from clover.profiling.score import judge
from clover.runtime.memory.rows import write_array, write_bytes
from clover.runtime.memory.slab import Slab
from clover.types import FamilySpec, SandboxOrder

MADE_UP_ROWS = 256
_ROWS = 32


class SampleRows:
    """Input rows in a fixed random order, and their labels (`labels` is empty if there are none)."""

    def __init__(
        self,
        spec: FamilySpec,
        inputs: Sequence[NDArray[Any]],
        labels: NDArray[Any],
        process: EvaluationProcess | None = None,
    ) -> None:
        self.spec = spec
        self.process = process
        """Where the family's code runs that gives the rows and compares answers; None: in this process."""
        self.judge = judge(spec, process.judge if process is not None else None)
        """What compares the outputs of rows with their labels."""
        self.count = len(inputs[0])
        order = np.random.default_rng(0).permutation(self.count)
        self._inputs = [array[order] for array in inputs]
        self.labels = labels[order] if len(labels) else labels

    @property
    def labelled(self) -> bool:
        """Whether answers can be scored."""
        return len(self.labels) > 0

    def take(self, first: int, count: int) -> list[NDArray[Any]]:
        """Return rows `first`, `first` + 1, ... of each input; after the last row comes the first again."""
        numbers = np.arange(first, first + count) % self.count
        return [array[numbers] for array in self._inputs]

    def fill(self, slab: Slab, slots: Sequence[int], first: int) -> None:
        """Write rows `first`, `first` + 1, ... into `slots` of `slab`; after the last row comes the first again."""
        for index, (tensor, rows) in enumerate(zip(self.spec.inputs, self.take(first, len(slots)), strict=True)):
            if tensor.datatype == "BYTES":
                packed = [pack(row) for row in rows]
                write_bytes(slab, tensor, index, list(slots), packed, rows.shape[1:])
            else:
                write_array(slab, tensor, index, list(slots), rows)


@contextlib.contextmanager
def apart(spec: FamilySpec, sandbox: SandboxOrder | None) -> Iterator[EvaluationProcess | None]:
    """Give the process that runs the evaluation of `spec`, confined by `sandbox`; None if nothing is to be confined."""
    if sandbox is None or spec.evaluation is None:
        yield None
        return
    with EvaluationProcess(spec, sandbox) as process:
        yield process


def load(spec: FamilySpec, split: str = "held_out", process: EvaluationProcess | None = None) -> SampleRows:
    """Return the rows of a split of `spec`, or made-up rows if it has no evaluation set.  A family that is judged by
    agreement has no labels.  The family's code runs in `process`; without a process, here.  Raises ConfigError."""
    if spec.evaluation is not None:
        inputs, labels = families.load_evaluation(spec, split) if process is None else process.rows(split)
        if families.by_agreement(spec):
            labels = labels[:0]  # what the loader gives for them says nothing
        return SampleRows(spec, steps.as_sent(spec, inputs), labels, process)
    inputs = steps.made_up(spec, MADE_UP_ROWS, np.random.default_rng(0))
    return SampleRows(spec, steps.as_sent(spec, inputs), np.empty(0, np.int64))


def pack(row: NDArray[Any]) -> bytes:
    """Return a row of byte strings as the Open Inference Protocol encodes it: each with its length before it."""
    return b"".join(len(item).to_bytes(4, "little") + item for item in row.reshape(-1))


def step_notes(spec: FamilySpec, rows: SampleRows, config: EnergyConfig) -> list[str]:
    """Return what the steps before the model take a row, in CPU time and joules, apart from the model: those of the
    client, and those of the worker for the best variant.  Empty for a family without such steps."""
    best = spec.variants[-1]
    plan = steps.plan_for(spec, best)
    if plan is None:
        return []
    notes, core_w = [], energy.cpu_power(config).core_w
    if plan.client_before:
        made = steps.made_up(spec, _ROWS, np.random.default_rng(0))
        spent = _cpu_s(lambda some: steps.as_sent(spec, some), made)
        notes.append(
            f"steps before the model run in the client: {spent * 1e3:.2f} ms of CPU a made-up row, measured here, or "
            f"{spent * core_w * 1e3:.2f} mJ, modelled; that is the client's, and in no figure of this profile"
        )
    if plan.worker_before:
        try:
            spent = _cpu_s(lambda some: steps.as_modelled(spec, best, some), rows.take(0, _ROWS))
        except ConfigError as error:  # a worker refuses such a row and goes on
            return [*notes, f"what the steps before the model take is unknown: {error}"]
        notes.append(
            f"steps before the model take {spent * 1e3:.2f} ms of CPU a row of {best.name}, measured here, or "
            f"{spent * core_w * 1e3:.2f} mJ, modelled; all figures of this profile include them"
        )
    return notes


def _cpu_s(run: Callable[[list[NDArray[Any]]], object], rows: list[NDArray[Any]]) -> float:
    """Return CPU seconds a row of `run`, after one row for which it imports its libraries."""
    run([array[:1] for array in rows])
    begun = time.process_time()
    run(rows)
    return (time.process_time() - begun) / len(rows[0])
