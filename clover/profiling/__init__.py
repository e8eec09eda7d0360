"""Measures a family on this machine: accuracy, latency, CPU time and energy, with real workers.

What is measured is what serves: workers of the pool, pinned to real placements, fed through slab and ring.  The service
time of a batch is the span its worker reports, from taking the batch off the ring to handing it back.  It includes
gather, model and scatter, but neither queueing nor HTTP.  One batch runs at a time (closed loop), with rows of the
evaluation set if there is one.

Three choices follow from the figures, and are kept with them:

- *Backend.*  A backend agrees with eager if it gives the same answer on at least 99.9 % of the rows, and its accuracy
  is within eager's 95 % interval.  Of those that agree, a variant takes the one with the least energy a row, on the
  smallest profile, as the geometric mean over the batch sizes.
- *Threads.*  A worker on k cores takes k threads only if that makes batches at least 15 % faster than one thread
  (geometric mean); otherwise it runs one.  More threads cost more CPU time for the same answer, so they must buy time.
  If one thread serves the largest batch within a millisecond, a quick measurement does not try more.
- *BASE.*  The most accurate variant on the whole device: its p95 in a short open-loop run of Poisson arrivals at 60 %
  of the throughput that full batches reach, dispatched first come first served with two batches a worker (the median
  over five stretches of the run).  The default SLO follows from that and from what HTTP adds (`front_end`).

Energy a row is active energy: RAPL above idle if RAPL can be read, otherwise `core_w` x CPU time, and labelled so.  On
GPUs it is what their own counters rose above idle.

Emulated GPUs are not measured but calculated, from the CPU that computes their answers or from a pace file
(`clover.emulation.profiles`).

Nothing else may read the pool's completions meanwhile: measure before routers start, or with a pool of its own.
"""

from __future__ import annotations

from clover.profiling.measurement import measure
from clover.profiling.options import MeasureOptions, Progress
from clover.profiling.progress import progress_bar
from clover.profiling.report import table
from clover.profiling.stored import ensure, key_of, paces_of

__all__ = ["MeasureOptions", "Progress", "ensure", "key_of", "measure", "paces_of", "progress_bar", "table"]
