"""Who caused which joules and grams.

A meter counts one device, slices and all; many workers of many families share it.  Per device and window (a second or
so):

* idle energy = idle power x time.  It is split over the workers that hold compute slices, by slices (workers that share
  a placement during a swap share its slices); what nobody holds goes to the line `unowned`.
* active energy = measured - idle.  It is split by modelled energy (busy time x modelled watts, which is rows x profiled
  joules a row) and rescaled, so that the parts sum to what was measured.  Active energy of a window in which no worker
  was busy goes to the line `unattributed`.
* measured < idle happens (noise, clock steps): active is clamped at zero and the debt is carried into later windows, so
  that over time, on every device,

      measured = active + idle of the workers + unowned + unattributed + carried,      exactly.

How far a worker's part is from the truth depends on the profile.  Where true watts lie within a factor 1 +- e of the
modelled ones (a factor common to all does not matter, it is rescaled away), the part of a worker with the share s of
the modelled energy is off by at most

    (1 - s) x 2e / (1 - e):      its own watts e below the model, everybody else's e above it.

A device whose meter has nothing new to say (a lost GPU, a counter that hangs) is frozen: its window stays open, work
and the holding of slices add up, and nothing is billed.  When the meter goes on, that window is closed as one; its idle
energy is then at most what was measured, since nobody knows at what power the device idled.  A meter that begins anew
(another `epoch`) opens a new window: what happened between is unknown, and belongs to nobody.

A request cannot wait for its window to close, so its receipt is an estimate from the same figures: the profiled energy
of its rows x the running ratio of measured to modelled energy of the device each batch ran on, plus its family's idle
watts / rows a second over the trailing minute.  After a quiet time that rate is far below the burst that ends it, so
rows only share what is there: the idle energy that their family's windows were given and no receipt has billed yet, at
most that of one trailing minute.  What no receipt bills, because nobody asked, is the line `idle_unbilled_j`.  Grams =
joules x intensity x PUE at the grid time of the window (or of the answer).

Everything is pure: time, samples and readings are arguments.  Figures keep the method of the sample they come from.
"""

from __future__ import annotations

from clover.accounting.account import Account, Span, Spans
from clover.accounting.devices import Share
from clover.accounting.meters import WorkerMeter, joules_per_row

__all__ = ["Account", "Share", "Span", "Spans", "WorkerMeter", "joules_per_row"]
