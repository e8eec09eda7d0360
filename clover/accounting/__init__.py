"""Attribution: which worker caused which joules and grams.

A meter counts one device with all its slices; many workers of many families share it.  For each device and window (a
second or so) the joules are split into lines:

* **Idle energy** = idle power x time.  It is split over the workers that hold compute slices, by slices (workers that
  share a placement during a swap share its slices): the line `idle` for the time in which they computed,
  `idle_no_request` for the rest.  Slices without a worker go to the line `unowned`, and so do cores that only the front
  end may use.  Cores that the server may not use go to `foreign`.
* **Being awake** has a price on a GPU: with a CUDA context on it, it draws more than idle power
  (`clover.energy.board_idle`).  That is the line `awake`, split over the workers there by slices; it is part of their
  idle energy.
* **Active energy** = measured - idle - awake.  On the machine itself it is split by CPU time, which the kernel counts
  for every process: each worker's, the server's own (`front_end`), and that of all else the server started (`control`:
  planning, profiling, starts, standby workers; rows that answer no client are moved there too).  A GPU has no such
  clock.  There it is split by modelled energy (rows x profiled joules a row) and rescaled, so that the parts sum to
  what was measured.  What none of them used (other programs, a window in which no worker was busy) is the line
  `unattributed`.
* Measured < idle happens (noise, clock steps).  Active energy is then zero, and the difference is carried into later
  windows.

Over time, on every device, in joules and in grams,

    measured = active + front_end + control + idle + idle_no_request + awake + unowned + foreign + unattributed
               + carried,      exactly.

**Example**: a window of 1 s on four cores.  The meter shows 32 J and idle power is 20 W, so idle energy is 20 J, 5 J a
core, and active energy is 12 J.  Worker A holds two cores and computes for 0.6 s, B holds one and computes for 0.5 s;
no worker holds the fourth.  CPU time is 2.4 s, so 12 J / 2.4 s = 5 J for each CPU second:

                 CPU s   of the 12 J   of the 20 J
    A              1.2           6     idle 6, idle_no_request 4
    B              0.5           2.5   idle 2.5, idle_no_request 2.5
    front_end      0.2           1
    control        0.1           0.5
    unattributed   0.4           2                                      another program
    unowned                            5                                the fourth core

**How far off on a GPU.**  A worker's part of a GPU depends on the profile.  If true watts lie within a factor 1 +- e of
the modelled ones (a factor common to all is rescaled away), the part of a worker with the share s of the modelled
energy is off by at most

    (1 - s) x 2e / (1 - e):      its own watts e below the model, everybody else's e above it.

**No new reading.**  If a device's meter gives no new reading (a lost GPU, a counter that hangs), the device is frozen:
its window stays open, work and the holding of slices add up, and nothing is billed.  When the meter reads again, that
window is closed as one.  Its idle energy is then at most what was measured, since the power at which the device idled
is unknown.  If a meter begins anew (another `epoch`), a new window opens: what was used in between is unknown, and is
attributed to no worker.

**Receipts.**  A request cannot wait for its window to close, so its receipt is an estimate from the same figures: the
sum of

- the profiled energy of its rows x the running ratio of measured to modelled energy (of its variant where CPU time
  tells variants apart, else of the device each batch ran on);
- the idle power of its slice for the time that its batch kept it;
- what a row took of the front end in the last windows, beyond what that takes while nobody asks.

For every family

    energy = receipts + idle_no_request + control + unbilled,      exactly.

`unbilled` is what the front end did for nobody, what was computed in vain, and by how much the estimates fell short.
It may be negative.

**Grams** = joules x intensity x PUE.  Each window is priced at the intensities of its own time, however late its energy
becomes known (`clover.accounting.prices`).

Everything is pure: time, samples and readings are arguments.  Figures keep the method of the sample they come from.
"""

from __future__ import annotations

from clover.accounting.account import Account
from clover.accounting.devices import Share
from clover.accounting.host import HostCpu
from clover.accounting.meters import HostProcess, ProfiledEnergy, WorkerMeter, profiled_energy
from clover.accounting.spans import Span, Spans

__all__ = [
    "Account",
    "HostCpu",
    "HostProcess",
    "ProfiledEnergy",
    "Share",
    "Span",
    "Spans",
    "WorkerMeter",
    "profiled_energy",
]
