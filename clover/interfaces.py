"""What one part of Clover may ask of another without importing it: Protocols, and the classes of the hot path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clover.types import (
    Asked,
    Assignment,
    Declined,
    DeviceShape,
    EnergySample,
    FamilySpec,
    JobView,
    Placement,
    Plan,
    Reading,
    Receipt,
    Routing,
    RowAnswer,
    State,
    VariantSpec,
    WaitingRow,
    WorkReport,
)

if TYPE_CHECKING:
    # Who lists GPUs or cuts them needs no arrays, and importing numpy takes as long as all else.
    from numpy.typing import NDArray

    from clover.tenants import Tenant

# --- strategies: folders of interchangeable implementations -----------------------------------------------------------


class Policy(Protocol):
    """Chooses a plan.  Pure: the same state gives the same plan."""

    name: str

    def propose(self, state: State) -> Plan:
        """Return the plan for `state`; PlanError if no configuration exists at all."""


class Backend(Protocol):
    """Compiles a variant ahead of time and loads it in a worker."""

    name: str

    def available(self) -> str:
        """Return "" if the backend is usable here, otherwise the reason why not."""

    def compile(self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int) -> None:
        """Write the artifact into `folder`.  A backend without artifacts does nothing."""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Return a function from input arrays (leading batch axis, declared order) to output arrays."""


class Device(Protocol):
    """A partitionable device: which layouts exist, and instances made and unmade."""

    def shape(self) -> DeviceShape:
        """Return the layouts this device allows."""

    async def create(self, placement: Placement) -> None:
        """Make the instance at `placement`; raises DeviceError."""

    async def destroy(self, placement: Placement) -> None:
        """Remove the instance at `placement`; raises DeviceError."""

    def cores(self, placement: Placement) -> tuple[int, ...]:
        """Return the CPU cores that a worker at `placement` is pinned to."""

    def threads(self, placement: Placement) -> int:
        """Return the number of threads that a worker at `placement` runs."""

    def visible(self, placement: Placement) -> str:
        """Return what a worker at `placement` must see as its only accelerator, as CUDA names it ("MIG-...",
        "GPU-..."); empty if there is none.  Raises DeviceError if the instance does not exist."""

    def memory_bytes(self, placement: Placement) -> int:
        """Return memory of the device that an instance at `placement` has for itself; 0 if that is the
        machine's own."""


class CarbonSource(Protocol):
    """Gives the grid's carbon intensity at a grid time.  `step_s`: how long one value holds, in grid seconds, if a
    reading does not say so itself. `remote`: a reading costs a call over the network, which is made every
    five seconds at most and backs off."""

    name: str
    step_s: float
    remote: bool

    async def read(self, grid_s: float) -> Reading:
        """Return the intensity valid at `grid_s` (Unix seconds); raises CarbonError."""

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return readings from `grid_s` on; empty if the source has no forecast."""


class EnergyMeter(Protocol):
    """Monotonic joules of one device.  `why` says which meter it is and what is wrong with it."""

    device: str

    @property
    def why(self) -> str: ...

    async def refresh(self) -> None:
        """Read what takes a while to read; `sample` returns what was found."""

    def sample(self, now_ns: int) -> EnergySample:
        """Return cumulative energy at `now_ns`, or at the last refresh for a meter that needs one."""


# --- what http sees of the server -------------------------------------------------------------------------------------


class Ticket:
    """One request inside the data plane, from its slots to its outcome.

    `status` is 0 while pending, then an HTTP status.  `slots[i]` is the slot of row i; `variants[i]` the index (into
    the family's variants) that answered it.  `client` names the tenant that sent it, else the address that it came
    from, the /64 of an IPv6 one; empty for this process.  `uncached`: what the client forbids a cache of answers
    (`clover.runtime.router.cached_answers`).  `waited_ns`: how long the request waited unread, before `arrival_ns` was
    taken; set before `submit`.  All times are monotonic nanoseconds.
    """

    __slots__ = (
        "arrival_ns",
        "client",
        "compute_ns",
        "context",
        "done_ns",
        "error",
        "queue_ns",
        "retry_after_s",
        "slots",
        "status",
        "uncached",
        "variants",
        "waited_ns",
    )

    slots: list[int]
    status: int
    error: str
    retry_after_s: float | None
    context: Any
    client: str
    arrival_ns: int
    done_ns: int
    queue_ns: int
    compute_ns: int
    uncached: int
    waited_ns: int
    variants: list[int]


NO_ROOM, LATE_ROOM, ROOM = range(3)
"""Whether rows find room in the queue: none, or too late for the longest wait that is configured, or in time."""


class Model:
    """One served family, as a front end uses it: open -> write rows into slots -> submit -> read rows -> close.

    A class and no Protocol, because every request passes it: if both sides are compiled, these are C calls.
    `closed_reason`: why no new requests are taken; empty while they are.  `most_rows`: the most rows of one request.
    `timeout_ns`: how long a request may take that sets no limit of its own.
    """

    __slots__ = ("closed_reason", "most_rows", "spec", "timeout_ns")

    spec: FamilySpec
    closed_reason: str
    most_rows: int
    timeout_ns: int

    @property
    def ready(self) -> bool:
        """Whether some worker takes rows now."""
        raise NotImplementedError

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> Ticket:
        """Reserve `rows` slots; raises Overloaded or Unavailable and then holds nothing.

        Waiting rows are served in turn by `flow`, the front end's number of a connection, from 1 on.  The rows of a
        `tenant` are one flow, whatever connections they come by; Overloaded says if the tenant is over its own rate.  A
        request that comes back after a refusal is known by `request`, a positive hash of its client's id, or by `flow`
        if that is 0."""
        raise NotImplementedError

    def retry_in_s(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> float:
        """Return 0 if rows of `flow` may find room.  Otherwise count the request as refused (429) and return the
        seconds after which it should come again.  Called before a request is decoded.  Raises Overloaded for a tenant
        that comes back too early."""
        raise NotImplementedError

    def room(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> int:
        """Return `NO_ROOM`, `LATE_ROOM` or `ROOM` for rows of `flow`, as the queue is now; nothing is counted."""
        raise NotImplementedError

    def take_late(self, on: bool) -> None:
        """Refuse no row for the longest wait (`LATE_ROOM`) from now on, or refuse such rows again."""
        raise NotImplementedError

    def count_expired(self, tenant: Tenant | None = None) -> None:
        """Count a request that waited unread until it could not be answered in time any more (504)."""
        raise NotImplementedError

    def lend(
        self, rows: int, index: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None
    ) -> tuple[Ticket, memoryview] | None:
        """Lend slots for `rows` rows that a client is still sending.  Return their ticket and the flat bytes of input
        `index`, which the receiver fills before `admit_lent`.  None if that is impossible: the slots are not
        neighbours, rows of that input vary, or too few slots are free."""
        raise NotImplementedError

    def admit_lent(self, ticket: Ticket) -> None:
        """Admit a ticket that `lend` opened, now that all its rows are there: it and its latency count from now on.
        Raises what `open` raises; the ticket stays open then."""
        raise NotImplementedError

    def write(self, ticket: Ticket, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """Copy input `index` of all rows into the slots (once).  Array: leading axis = rows, declared dtype.  BYTES:
        one bytes object a row, already in OIP form.  Raises BadRequest if a row does not fit."""
        raise NotImplementedError

    def write_elements(self, ticket: Ticket, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """Copy the rows of a BYTES input as `write` does, if their elements have the shape `dims`, which varies and
        which their number does not say."""
        raise NotImplementedError

    def submit(
        self,
        ticket: Ticket,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """Queue the rows.  `on_done` is called once, on the loop, with `status` set.  `min_accuracy` is in percent;
        `cascade` False asks one variant a row, also if the plan has a chain.  Raises BadRequest (400) if no variant
        reaches the accuracy or if it is a fraction, DeadlineMissed for a spent deadline, Overloaded
        if the answer would come too late; the ticket stays open then."""
        raise NotImplementedError

    def read(self, ticket: Ticket, index: int) -> NDArray[Any] | list[bytes]:
        """Return output `index` of all rows as one array with a leading row axis (BYTES: OIP form per row).  Valid
        until `close`; a view if the slots are consecutive, a copy otherwise."""
        raise NotImplementedError

    def text(self, ticket: Ticket, index: int) -> bytes | None:
        """Return what `read` returns as one flat JSON array, if that can be had without an object for each number; None
        otherwise, and if a number is not finite."""
        raise NotImplementedError

    def receipt(self, ticket: Ticket) -> Receipt:
        """Return what a finished ticket cost."""
        raise NotImplementedError

    def remember(self, number: int, ticket: Ticket) -> None:
        """Keep what an answered ticket says under the number of its request, which is unique, for labels that come
        late; before `close`."""
        raise NotImplementedError

    def count_labels(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        """Count the labels that a client has for a remembered request, one a row (None: not known); return the
        outcome.  Number 0 belongs to no request.  Raises NotFound, BadRequest, or Overloaded if the client sends too
        many."""
        raise NotImplementedError

    def close(self, ticket: Ticket) -> None:
        """Give the slots back (once answered, refused, or the client is gone).  Safe while rows are in flight: they
        return to the free list when their worker is done with them."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Return the OIP statistics object of this model."""
        raise NotImplementedError


class SplitModel(Model):
    """A name under which two versions of a model are served: the stable one, and a new one that is being rolled out.
    Both have the same tensors, those of `spec`."""

    def versions(self) -> tuple[FamilySpec, ...]:
        """Return the stable version and the new one."""
        raise NotImplementedError

    def version_of(self, ticket: Ticket) -> FamilySpec:
        """Return the version that answers a ticket; before `close`."""
        raise NotImplementedError


class Control(Protocol):
    """What the front end sees of the controller."""

    def state(self) -> dict[str, Any]:
        """Return intensity, deployment, routing, targets and totals: the body of GET /v2/clover/state."""

    def decisions_json(self, limit: int) -> bytes:
        """Return the newest decisions, newest first, as JSON."""

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Execute pin, freeze, plan, apply, base, set or guard and return its result; it is recorded as a decision.
        Raises BadRequest or PlanError."""


class ServerView(Protocol):
    """What the front end sees of the server."""

    def models(self) -> dict[str, Model]:
        """Return every family by name, loaded or not."""

    def ready(self) -> bool:
        """Return whether every loaded family has capacity and the server is not draining."""

    def live(self) -> bool:
        """Return whether the event loop runs: true until the end."""

    async def load(self, name: str, config: str) -> None:
        """Start workers for a family (OIP repository load).  Raises NotFound, BadRequest or Unavailable."""

    async def unload(self, name: str) -> None:
        """Drain and stop a family's workers (OIP repository unload).  Raises NotFound."""

    def state_of(self, name: str) -> tuple[str, str]:
        """Return the OIP repository state ("READY", "UNAVAILABLE", "LOADING", "UNLOADING") and the reason."""

    def control(self) -> Control:
        """Return the controller."""

    def metrics(self) -> bytes:
        """Return Prometheus text."""


# --- work that can wait -----------------------------------------------------------------------------------------------


class WaitingRows(Protocol):
    """The rows of batch jobs, as what runs them sees them (`clover.waiting.store.BatchStore`)."""

    def open_jobs(self) -> list[JobView]:
        """Return the jobs that have rows to answer, the oldest first."""

    async def next_rows(self, job_id: str, count: int) -> list[WaitingRow]:
        """Lend up to `count` rows of a job that nobody has.  Empty if none is left to lend, the job takes no more
        answers, or the disk is full.  Lent rows are known in memory only: after a kill they are offered again."""

    async def answered(self, job_id: str, answers: Sequence[RowAnswer | tuple[int, int, bytes]]) -> None:
        """Keep the answers of rows; once this returns they outlast a kill.  An answer to a row that has one, or whose
        job has ended, is dropped.  If the disk is full nothing is kept, the rows are offered again once there is room,
        and nothing is raised."""

    def give_back(self, job_id: str, numbers: Sequence[int]) -> None:
        """Offer rows again that were lent and not computed."""

    async def repeated(self, job_id: str, rows: int) -> None:
        """Count rows of a job that were computed once more than needed, beside those that a kill or a full disk made
        so, which are counted already."""


RowDone = Callable[[int, bytes, Receipt | None, str, float | None], None]
"""Takes the answer of a waiting row: HTTP status, JSON body, receipt, version of the model.  The last argument is not
None if there is no answer, because the row could not be computed now: seconds after which it may be tried again."""


class RowStarter(Protocol):
    """Starts the requests of waiting rows (`clover.http.waiting.RowRequests`)."""

    def start(self, job: JobView, body: bytes, done: RowDone) -> None:
        """Start the request `body` of a row of `job`; never raises."""


class SpareCapacity(Protocol):
    """What workers of one family spare, as what runs waiting rows sees it (`clover.runtime.router.waiting.SpareTime`).

    `on`: rows of this family are to run; `urgent`: as fast as they can.  `hungry` is called when there is room for
    rows.  `answered` rows were in all, with `energy_j` joules in their receipts."""

    on: bool
    urgent: bool
    hungry: Callable[[], None]
    answered: int
    energy_j: float

    @property
    def blocked(self) -> str:
        """Why no row runs now; empty if rows may."""

    def rows_wanted(self) -> int:
        """Return how many rows to start now."""

    def give_up(self, why: str) -> None:
        """Let the rows that are with no worker come back unanswered."""


# --- what the controller sees of the runtime --------------------------------------------------------------------------


class Fleet(Protocol):
    """The workers of one family, as a transition drives them."""

    def ready_assignments(self) -> tuple[Assignment, ...]:
        """Return the workers that are ready now."""

    async def spawn(self, assignment: Assignment) -> None:
        """Start a worker, load its model and warm it; it is ready then (not yet routed to).  Raises WorkerError."""

    async def drain(self, assignment: Assignment) -> None:
        """Stop routing to it, wait for its rows, let it exit, reap it."""

    def forget(self, assignment: Assignment, reason: str) -> None:
        """Give up a worker whose device is gone: no more rows, no restart, and an end to it without waiting.  Its rows
        are sent to other workers."""

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        """Make exactly `assignments`, atomically, the workers that receive rows, and `routing` how: which share of them
        each variant gets, the batches it forms and how long rows wait for these to fill."""

    @property
    def asleep(self) -> bool:
        """Whether its workers have ended because nobody asked the family, and are not all there again."""

    async def wake(self) -> None:
        """Have the workers of a family that sleeps started, and wait some seconds for the first."""

    def observe(self) -> dict[str, float]:
        """Return arrival_rate (rows/s, trailing), p95_ms, queue_rows, rows, and other live figures.

        `p95_least_ms`: what the p95 is at least for sure, if it is that of a sample; `guard`: the alarm level that its
        answers call for (0: none), if they are watched."""

    def work_report(self) -> WorkReport:
        """Return the work of its workers since the last call, to compare with the profile; empty if it is unknown."""

    def correct_energy(self, factors: Mapping[tuple[str, str], float]) -> None:
        """Multiply the profile's joules a row by these factors, by (variant, profile of the slice), in receipts and
        when a meter is split over workers.  Without a factor the profile holds."""

    def correct_front(self, front_ms: float) -> None:
        """Add this many milliseconds, for HTTP and the front end, to the p95 that the router sees."""

    def guard_report(self) -> dict[str, Any]:
        """Return what its guard saw and did, its audits, and late labels."""

    def reset_guard(self) -> None:
        """Forget what the guard has seen and watch answers anew."""

    def accuracy_demand(self) -> Mapping[str, Asked]:
        """Return rows that asked for an accuracy of their own, by the variant that they need."""

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """Refuse rows that need one of the `declined` variants while no worker is accurate enough, including rows that
        wait already.  Rows that need another variant wait for its worker; `wanted` is called when the first one
        waits."""
