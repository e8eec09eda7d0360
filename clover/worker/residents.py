"""The variants that a worker holds: loaded and warmed one after another, as many of its order as fit.

If the first variant does not work, the worker does not start.  If a further one fails to load, does not answer, or
would make the worker hold more than its order allows (`resident_bytes`), it is left out, with the reason.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from clover import backends
from clover.backends.tensors import example_inputs
from clover.cache import check_files
from clover.families import manifest
from clover.families.manifest import CheckedFiles
from clover.runtime.memory.slab import Slab
from clover.worker import frames
from clover.worker.batches import Batches, check_answers
from clover.worker.loop import ResidentLane, Run, Scores
from clover.worker.memory import meter_of, weights_of
from clover.worker.steps import LaneSteps

_log = logging.getLogger("clover.worker")

WARM_S = 0.012
"""Seconds that warming a variant on CPU cores may take, estimated from the time of a row so far.  A batch size that was
not warmed takes a few milliseconds more, once, which matters less the larger it is; a swap would wait for all of them.
"""

WARM_GPU_S = 0.25
"""The same on a GPU, whose libraries choose a kernel for each size; powers of two are warmed there in any case."""

_REASON_CHARS = 2000
_LEFT_OUT_CHARS = 300  # of a reason why a variant is left out: all of them share a frame


class ResidentSet:
    """Loads and warms the variants of `order`, and keeps what each of them holds.  `lanes` are theirs, in the order's
    order: None for one that was left out, which `left_out` has the reason for."""

    def __init__(self, order: frames.WorkerOrder, slab: Slab) -> None:
        self._order = order
        self._slab = slab
        first = frames.Resident(
            variant=order.variant,
            backend=order.backend,
            artifact_dir=order.artifact_dir,
            threads=order.threads,
            recording=order.recording,
        )
        self._wanted = (first, *order.also)
        self._runs: list[Run | None] = [None] * len(self._wanted)
        self._steps: list[LaneSteps | None] = [None] * len(self._wanted)
        self._weights: list[int] = [0] * len(self._wanted)
        self._meter = meter_of(bool(order.visible_devices))
        self.left_out: dict[str, str] = {}
        self._load_ms = 0.0
        self._begun_ns = time.monotonic_ns()
        self._warm_ms = 0.0

    @property
    def lanes(self) -> list[ResidentLane | None]:
        """The variants as the loop runs them."""
        return [
            None if run is None else ResidentLane(run, self._enter(lane), self._steps[lane], self._overlap(lane))
            for lane, run in enumerate(self._runs)
        ]

    def _overlap(self, lane: int) -> Any:
        """Return what begins and finishes batches of `lane` apart; None if it cannot, or steps stand around it."""
        return None if self._steps[lane] is not None else getattr(self._runs[lane], "overlap", None)

    def state(self) -> frames.WorkerState:
        """Return what the worker reports once all is done."""
        return frames.WorkerState(
            state="ready",
            load_ms=self._load_ms,
            warm_ms=self._warm_ms,
            resident=tuple(self._meter.held),
            context_bytes=self._meter.context_bytes,
            left_out=self.left_out,
            recorded={
                one.variant: fault[:_LEFT_OUT_CHARS]
                for one, run in zip(self._wanted, self._runs, strict=True)
                if (fault := getattr(run, "replay_fault", None)) is not None
            },
        )

    def load_first(self) -> float:
        """Load the first variant and return the milliseconds that took; raises what its loader raises."""
        import torch

        torch.set_num_interop_threads(1)
        self._load(0)
        return self._load_ms

    def warm_first(self, batches: Batches, scores: Scores | None) -> None:
        """Warm the first variant; raises if it does not answer as declared."""
        self._warm(0, batches, scores)

    def add_others(self, batches: Batches, scores: Scores | None) -> None:
        """Load and warm the other variants, each of them only if it works and fits.  Raises what the first variant
        raises if it does not work any more after that."""
        for lane in range(1, len(self._wanted)):
            reason = self._add(lane, batches, scores)
            if not reason:
                continue
            self.left_out[self._wanted[lane].variant] = reason[:_LEFT_OUT_CHARS]
            self._runs[lane] = None
            gc.collect()
            if self._order.visible_devices:
                self._recover()

    def _add(self, lane: int, batches: Batches, scores: Scores | None) -> str:
        """Load and warm a further variant; return why it cannot be held, "" if it can."""
        limit, meter, begun_ms = self._order.resident_bytes, self._meter, ms_since(self._begun_ns)
        if 0 < self._order.also_s * 1e3 <= begun_ms:
            return f"the worker has been loading for {begun_ms / 1e3:.1f} s, of {self._order.also_s:g} s"
        if limit and meter.total_bytes >= limit:
            return f"the others hold {_mib(meter.total_bytes)} of the {_mib(limit)} for all"
        try:
            self._load(lane)
            if limit and meter.total_bytes + self._weights[lane] > limit:
                needed = f"its weights need {_mib(self._weights[lane])}"
                return f"{needed}, the others hold {_mib(meter.total_bytes)} of the {_mib(limit)} for all"
            self._warm(lane, batches, scores)
        except (Exception, SystemExit) as error:
            _log.warning("%s cannot be held beside %s", self._wanted[lane].variant, self._order.variant, exc_info=True)
            return reason_of(error)
        _log.debug("%s took %.1f ms", self._wanted[lane].variant, ms_since(self._begun_ns) - begun_ms)
        if limit and meter.total_bytes > limit:
            reason = f"with it, the worker would hold {_mib(meter.total_bytes)}, more than {_mib(limit)}"
            meter.drop()
            return reason
        return ""

    def _recover(self) -> None:
        """Give back what a variant that was left out held on the GPU, and see whether the first one works still."""
        import torch

        torch.cuda.empty_cache()
        first = self._runs[0]
        assert first is not None
        if self._order.family.variant(self._order.variant).kind == "torch":
            first(example_inputs(self._order.family, self._order.family.variant(self._order.variant), 1))

    def _enter(self, lane: int) -> Callable[[], None] | None:
        """Return what has to be set before batches of `lane` run: the threads of torch, if variants differ in them."""
        import torch

        differ = len({wanted.threads for wanted in self._wanted}) > 1
        return partial(torch.set_num_threads, self._wanted[lane].threads) if differ else None

    def _load(self, lane: int) -> None:
        import torch

        wanted, order = self._wanted[lane], self._order
        torch.set_num_threads(wanted.threads)
        start_ns = time.monotonic_ns()
        self._meter.begin()
        variant, backend = order.family.variant(wanted.variant), backends.get(wanted.backend)
        device = backends.device_for(order.visible_devices)
        if wanted.artifact_dir:
            check_files(Path(wanted.artifact_dir))  # it is code, and will run
        run = backend.load(order.family, variant, Path(wanted.artifact_dir), wanted.threads, device)
        record = getattr(run, "record_launches", None)
        if record is not None and wanted.recording != "skip":
            record(check=wanted.recording == "check")
        self._runs[lane] = run
        self._weights[lane] = weights_of(run, wanted.artifact_dir if backend.compiles else "")
        self._load_ms += ms_since(start_ns)

    def _warm(self, lane: int, batches: Batches, scores: Scores | None) -> None:
        """Run batch sizes once on zeros, powers of two and the largest first, then the others.

        Frameworks prepare kernels per shape: the first batch of a size would take longer.  This also finds a module
        whose answers do not match the family's declaration, and, if memory is limited, one that finds no room for the
        largest batch.  Plain Python may well refuse zeros or empty strings, and has nothing to prepare: its failure
        here is only logged.  On an emulated slice the pace hides what a size costs first, and dozens of workers start
        at once: powers of two suffice.
        """
        wanted, order, run = self._wanted[lane], self._order, self._runs[lane]
        assert run is not None
        start_ns = time.monotonic_ns()
        variant = order.family.variant(wanted.variant)
        inputs = example_inputs(order.family, variant, order.max_batch)
        row_ms = 0.0
        for size, until_ms in sizes(order):
            begin_ms = ms_since(start_ns)
            if begin_ms + row_ms * size > until_ms:
                continue
            try:
                answers = run([array[:size] for array in inputs])
                check_answers(order.family.model_outputs(variant), size, answers)
                if scores is not None:
                    scores.try_out(answers)
                if size > 1:  # the very first run is slow and tells little
                    row_ms = (ms_since(start_ns) - begin_ms) / size
            except Exception as error:
                if variant.kind == "torch":
                    raise
                _log.info("%s does not take zeros: %s", wanted.variant, reason_of(error))
                break
            self._meter.settle(self._weights[lane])
        if order.family.stepped:
            self._warm_steps(lane, run, batches, scores)
        self._meter.end(wanted.variant, self._weights[lane])
        self._warm_ms += ms_since(start_ns)

    def _warm_steps(self, lane: int, run: Run, batches: Batches, scores: Scores | None) -> None:
        """Make the steps of a variant, and take a made-up row through them."""
        wanted, family = self._wanted[lane], self._order.family
        write = scores.write if scores is not None else None
        made = LaneSteps(family, family.variant(wanted.variant), self._slab, batches, write, wanted.threads)
        self._steps[lane] = made
        try:
            made.try_out(run)
        except Exception as error:
            if family.variant(wanted.variant).kind == "torch":
                raise
            _log.info("%s does not take a made-up row: %s", wanted.variant, reason_of(error))


def checked_files(order: frames.WorkerOrder) -> CheckedFiles | None:
    """Return the files of the order's family, checked by the manifest that the server read; None if it has none.
    Raises ConfigError if a file differs."""
    family = order.family
    return manifest.check(Path(family.folder), expected=family.manifest) if family.manifest else None


def sizes(order: frames.WorkerOrder) -> Iterator[tuple[int, float]]:
    """Yield the batch sizes to warm, and how many milliseconds after the start each has to be done."""
    most = order.max_batch
    powers = sorted({1 << power for power in range(most.bit_length())} | {most})
    on_gpu = bool(order.visible_devices)
    limited = order.emulated is not None or order.memory_bytes > 0
    for size in powers:
        # Two rows in any case: a module that mixes up its batch axis shows it then, and not under load.
        yield size, math.inf if on_gpu or limited or size <= 2 else WARM_S * 1e3
    if order.emulated is None:
        for size in range(most, 0, -1):
            if size not in powers:
                yield size, (WARM_GPU_S if on_gpu else WARM_S) * 1e3


def reason_of(error: BaseException) -> str:
    """Return an error and its causes in one line."""
    causes: list[str] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 4:
        causes.append(f"{type(current).__name__}: {current}")
        current = current.__cause__
    return "; because ".join(causes)[:_REASON_CHARS]


def ms_since(start_ns: int) -> float:
    """Return the milliseconds from `start_ns` (monotonic) until now."""
    return (time.monotonic_ns() - start_ns) / 1e6


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
