"""The nouns of Clover as frozen records: what a family is, what was measured, what runs where, what is planned.

Everything here is plain data that survives a round trip through JSON (`msgspec.json`), because plans, profiles and
worker orders cross process boundaries and are never pickled.  Units stand in the names.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

Method = Literal["measured", "modelled", "emulated", "analytical", "published", "configured", "proxy", "none"]
"""Where a number comes from.  Every figure Clover reports carries one of these."""

Precision = Literal["fp32", "tf32", "fp16"]
"""What a variant multiplies with.  "tf32" lets a GPU that can round factors to TF32 do so; elsewhere it is fp32."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, keyword-only, unknown fields refused."""


# --- families -------------------------------------------------------------------------------------------------------


class TensorSpec(Record, frozen=True, kw_only=True):
    """One input or output of a family, per row (the batch axis is not part of `shape`).

    `shape` may hold -1 for a variable axis; `max_shape` then bounds every axis.  A BYTES tensor reserves `max_bytes`
    per row for its elements in OIP form (uint32 length + bytes each).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    max_shape: tuple[int, ...] = ()
    max_bytes: int = 0
    labels: tuple[str, ...] = ()

    @property
    def bound(self) -> tuple[int, ...]:
        """The largest shape of one row."""
        return self.max_shape or self.shape

    @property
    def variable(self) -> bool:
        """Whether rows may differ in shape."""
        return min(self.shape, default=0) < 0


class PublishedAccuracy(Record, frozen=True, kw_only=True):
    """An accuracy somebody else measured, with where it was published."""

    value: float
    metric: str
    source: str


class PublishedFile(Record, frozen=True, kw_only=True):
    """A file that somebody publishes, see `PublishedWeights`."""

    url: str
    sha256: str = ""


class PublishedWeights(PublishedFile, frozen=True, kw_only=True):
    """Weights that somebody publishes: where, and their SHA-256 digest, of which `sha256` is as much as is known.

    If nothing of it is known, the file is pinned when it is fetched; then "{revision}" in `url` stands for the commit
    that is chosen when it is fetched.  `beside` are further files that the weights need, as a vocabulary: once they are
    there, the variant's parameter of that name is the name of the file.
    """

    beside: dict[str, PublishedFile] = {}


class VariantSpec(Record, frozen=True, kw_only=True):
    """One quality rung of a family.

    `loader` is "module:function", called in the worker as `loader(variant: VariantSpec, folder: pathlib.Path)`.
    `kind` "torch": it returns an `nn.Module` in eval mode taking the inputs in declared order and returning a tensor
    or a tuple in declared order.  `kind` "python": it returns a callable from a list of NumPy arrays to a list of them.
    `precision` is part of what a variant is (a cheaper one is a variant of its own); inputs and outputs keep their
    types.
    """

    name: str
    loader: str
    kind: Literal["torch", "python"] = "torch"
    version: str = "1"
    weights: str = ""
    precision: Precision = "fp32"
    accuracy: PublishedAccuracy | None = None
    parameters: dict[str, str | int | float | bool] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    """What its model takes and gives if that is not what clients send and get; filled in by Clover."""
    published: PublishedWeights | None = None
    untrained: bool = False
    """Whether it answers with random weights: declared, or filled in by Clover where its published ones are not."""


StepTable = dict[str, str | int | float | bool | list[str | int | float | bool]]
"""A step as it is declared: its name under "step", and its parameters.  "$name" stands for a variant's parameter."""


class StepsSpec(Record, frozen=True, kw_only=True):
    """What is done to rows before and after the model (see `clover.steps`): `before` turns `inputs` into the model's
    tensors, `after` turns the model's answers into `outputs`.

    `run` says where: "worker": all steps run in the worker, with the batch.  "client": all steps run in the client.
    "split": steps that make tensors of bytes run in the client; arithmetic and everything after the model run in the
    worker.  `inputs` and `outputs` are the application's tensors; without them they are the model's.
    """

    run: Literal["worker", "client", "split"] = "worker"
    inputs: tuple[TensorSpec, ...] = ()
    before: tuple[StepTable, ...] = ()
    after: tuple[StepTable, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class EvaluationSpec(Record, frozen=True, kw_only=True):
    """Labelled rows of a family.

    `loader` is "module:function", called as `loader(folder, split)` with split "calibration" or "held_out"; it returns
    `(inputs: list[np.ndarray with a leading row axis], labels: np.ndarray)`.  `metric` "top1": the first output's
    argmax against the label; "agreement": against the answer of the last variant (a proxy: labels are not looked at);
    or "module:function" of the family's folder, called as `metric(outputs, labels)` with arrays by the name of the
    output and some labels, which returns how right each row is, 0..1.
    """

    loader: str
    metric: str = "top1"


class ConfidenceSpec(Record, frozen=True, kw_only=True):
    """How sure an answer is: a score a row, higher the surer, that cascades compare with their thresholds.

    `kind`: "top" (the largest probability), "margin" (the largest less the second), "entropy" (1 - H / ln K), or
    "module:function" of the family's folder.  `output` is the tensor it reads, the first one by default; `logits` says
    that it holds logits, which are made probabilities first.
    """

    kind: str = "top"
    output: str = ""
    logits: bool = False


class OpenAiSpec(Record, frozen=True, kw_only=True):
    """What a family answers in the shape of OpenAI's API.  `embeddings`: its one input is text (BYTES, one element a
    row), and its output `output` (the first one by default) a vector (floating-point numbers of one axis)."""

    embeddings: bool = False
    output: str = ""


class FamilySpec(Record, frozen=True, kw_only=True):
    """A family of variants that answer the same question: one OIP model.  `variants` run from cheap to dear.  One
    without `confidence` does not cascade.

    `inputs` and `outputs` are what clients send and get.  They are what the models take and give, unless there are
    `steps` between (`model_inputs`, `model_outputs`)."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[VariantSpec, ...]
    folder: str = ""
    version: str = "1"
    platform: str = "clover"
    description: str = ""
    licence: str = ""
    max_batch: int = 32
    evaluation: EvaluationSpec | None = None
    confidence: ConfidenceSpec | None = None
    steps: StepsSpec | None = None
    openai: OpenAiSpec | None = None
    digest: str = ""
    manifest: str = ""
    """The SHA-256 of its `manifest.sha256`, by which its files were checked; empty without one."""

    def model_inputs(self, variant: VariantSpec) -> tuple[TensorSpec, ...]:
        """Return the tensors that the model of `variant` takes."""
        return variant.inputs or self.inputs

    def model_outputs(self, variant: VariantSpec) -> tuple[TensorSpec, ...]:
        """Return the tensors that the model of `variant` gives."""
        return variant.outputs or self.outputs

    @property
    def stepped(self) -> bool:
        """Whether workers run steps around the model."""
        return self.steps is not None and self.steps.run != "client"

    def variant(self, name: str) -> VariantSpec:
        """Return the variant of that name; KeyError if there is none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)


# --- devices and what runs on them ----------------------------------------------------------------------------------


class Placement(Record, frozen=True, kw_only=True):
    """A profile at an offset of a device: `1c` at core index 1, `2g.10gb` at memory slice 4."""

    device: str
    profile: str
    start: int
    size: int

    @property
    def id(self) -> str:
        """A short name that is unique on this machine: "cpu0:1c@1"."""
        return f"{self.device}:{self.profile}@{self.start}"

    @property
    def slices(self) -> int:
        """Compute slices: 3 of a MIG shape `3g.20gb` (its `size` counts memory slices), 1 of a part `1c.3g.20gb`, cores
        of a core-set, 1 of a whole GPU."""
        compute, is_mig, _ = self.profile.partition("g.")
        return int(compute.partition("c.")[0]) if is_mig else self.size


class Assignment(Record, frozen=True, kw_only=True):
    """One worker of a deployment: which variant, compiled by which backend, runs at which placement."""

    placement: Placement
    family: str
    variant: str
    backend: str


class GroupCount(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A row of a configuration: `count` workers of `variant` on `profile`.  Workers that share their time between
    several variants name the others in `beside`; `variant` is then the first of them by name."""

    variant: str
    profile: str
    count: int
    beside: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that each of these workers serves."""
        return (self.variant, *self.beside)

    @property
    def words(self) -> str:
        """The row in words: "2 x small@1c", or "2 x large/small@1c" if they share their time."""
        return f"{self.count} x {'/'.join(self.variants)}@{self.profile}"


Configuration = tuple[GroupCount, ...]
"""The multiset {(variant, profile): count}, sorted: the paper's configuration graph.  Workers that share their time are
counted by the variants that they share it between."""


def words_of(configuration: Configuration) -> str:
    """Return a configuration in words: "2 x small@1c + 1 x large/small@2c", the latter shared by two variants."""
    return " + ".join(group.words for group in configuration)


def configuration_of(deployment: tuple[Assignment, ...]) -> Configuration:
    """Return the configuration a deployment realises.  A placement with several assignments shares its time between
    their variants."""
    held: dict[Placement, set[str]] = {}
    for item in deployment:
        held.setdefault(item.placement, set()).add(item.variant)
    counts: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for placement, variants in held.items():
        first, *others = sorted(variants)
        key = (first, placement.profile, tuple(others))
        counts[key] = counts.get(key, 0) + 1
    return tuple(GroupCount(variant=v, profile=p, beside=b, count=n) for (v, p, b), n in sorted(counts.items()))


class DeviceShape(Record, frozen=True, kw_only=True):
    """What layouts one device allows: each layout is a set of placements that may exist together.

    `overlap` says whether an instance may be created while another still covers its place (core-sets yes, MIG no).
    `shared_front` says that the front end runs on the same cores (small boxes).  A device that is lost has no layouts.
    `slices` counts compute slices.

    `one_process`: only one process at a time may use the device, so no worker can start beside another (a GPU in the
    compute mode EXCLUSIVE_PROCESS).

    `core_sleep_w`: of a row of cores, the idle watts that each core is taken to spare while it has no worker; a plan
    may then use the first cores only, `least_cores` of them or more.  Null: every core has a worker.
    `sleep_w`: of a GPU, the idle watts that it is taken to spare while it has no workers, known by `sleep_method`; a
    plan may then leave it without.  Null: it always has workers.
    """

    device: str
    kind: Literal["cpu", "mig"]
    layouts: tuple[tuple[Placement, ...], ...]
    slices: int
    overlap: bool
    shared_front: bool = False
    emulated: bool = False
    label: str = ""
    core_sleep_w: float | None = None
    least_cores: int = 1
    one_process: bool = False
    sleep_w: float | None = None
    sleep_method: Method = "modelled"


# --- profiles ---------------------------------------------------------------------------------------------------------


class LatencyMeasurement(Record, frozen=True, kw_only=True):
    """How one (variant, profile, backend, batch) runs, batch after batch: milliseconds a batch, CPU seconds and joules
    a row.  `rested_j`: joules that a batch costs more where its worker slept before (0: not known, or not measured);
    `wake_j`: those that it costs its worker beyond that if it serves on cores, after a pause of 8 ms (0: the same);
    `energy_error`: how far joules measured at several loads are off one line, as a part (0: measured at one load)."""

    variant: str
    profile: str
    backend: str
    batch: int
    threads: int
    samples: int
    mean_ms: float
    cv: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_s_per_row: float
    energy_j_per_row: float
    energy_method: Method
    rested_j: float = 0.0
    wake_j: float = 0.0
    energy_error: float = 0.0


class AccuracyMeasurement(Record, frozen=True, kw_only=True):
    """Accuracy of one (variant, backend) in percent, with its 95 % interval; `agreement` is the share of rows on which
    the backend's answer equals eager's (1.0 for eager itself).  `against`: points of accuracy above the best variant on
    the same rows, and the 95 % interval of this paired difference (null: not known).  It was counted on `samples` rows
    of an evaluation set of `of` (0: not known): fewer if the time for it ran out.  `points`: of accuracy above eager on
    the same rows."""

    variant: str
    backend: str
    metric: str
    value: float
    low: float
    high: float
    samples: int
    method: Method
    agreement: float = 1.0
    source: str = ""
    against: tuple[float, float, float] | None = None
    of: int = 0
    points: float = 0.0


class BasePoint(Record, frozen=True, kw_only=True):
    """BASE: the best variant on whole devices, at 60 % load. p95 milliseconds in its workers, joules a row, accuracy in
    percent.  `load` is a part of what it serves in full batches: less than 60 % if that is more than can be sent."""

    variant: str
    profile: str
    count: int
    backend: str
    p95_ms: float
    energy_j_per_row: float
    accuracy: float
    method: Method
    load: float = 0.6


class ChainPoint(Record, frozen=True, kw_only=True):
    """A way to cascade: a chain of variants and its thresholds, which were chosen on calibration rows.

    The figures are those of held-out rows, empty (negative) if unknown:

    `accuracy`, `low`, `high`  percent, and its 95 % interval
    `reach`                    by stage: the part of all rows that it is asked (the first stage: 1)
    `ends`                     by stage: the accuracy of its answers to the rows that end there
    `cut`                      by stage: the accuracy of its answers to the rows that it passes on (the last: as `ends`)
    `cost`                     energy of a row as a part of the best variant's alone, at each variant's most frugal
    `against`                  points of accuracy above the best variant alone, and the 95 % interval of this difference
    `alike`                    by stage: of the rows that end there, the part that the best variant answers alike
    `overruled`                of all rows, the part that reaches the best variant and gets another answer from it
    """

    chain: tuple[str, ...]
    thresholds: tuple[float, ...]
    accuracy: float
    low: float
    high: float
    reach: tuple[float, ...]
    ends: tuple[float, ...]
    cut: tuple[float, ...]
    cost: float
    against: tuple[float, float, float] | None = None
    alike: tuple[float, ...] = ()
    overruled: float = -1.0


class Sureness(Record, frozen=True, kw_only=True):
    """What a variant's scores tell, on held-out rows by tenths from the least to the most sure: the part that is right,
    and the part that is answered as the best variant does.

    What a guard holds scores and answers against: `edges` are the scores at which the tenths of calibration rows part,
    `parts` which part of all `rows` (calibration and held-out) lies in each of the bins between them; `alike` the part
    of these rows that another variant answers as this one does.  Empty in profiles of before there was a guard."""

    right: tuple[float, ...]
    agreement: tuple[float, ...]
    edges: tuple[float, ...] = ()
    parts: tuple[float, ...] = ()
    rows: int = 0
    alike: dict[str, float] = {}


class CascadeProfile(Record, frozen=True, kw_only=True):
    """What a family's confidence is worth.  `points` are the Pareto fronts of accuracy and cost over all chains of up
    to two and of up to three variants, and some of each chain of two's own, from the cheapest up; `quantiles` of each
    variant's scores on held-out rows, equally spaced from the least to the highest, and what they tell (`sureness`);
    the numbers of rows it was made from.

    Costs are held against those of `best`.  `joules` a row of each variant, at its most frugal batch on the profile
    that `measured_on` says, come from `method`; a planner has its own and counts with `ChainPoint.reach`."""

    points: tuple[ChainPoint, ...]
    quantiles: dict[str, tuple[float, ...]]
    calibration_rows: int
    held_out_rows: int
    sureness: dict[str, Sureness] = {}
    best: str = ""
    joules: dict[str, float] = {}
    measured_on: dict[str, str] = {}
    method: Method = "none"


class MemoryMeasurement(Record, frozen=True, kw_only=True):
    """What one (variant, profile, backend) holds on its slice, bytes: its weights, and the most that its largest batch
    needed on top."""

    variant: str
    profile: str
    backend: str
    weights_bytes: int
    peak_bytes: int


class RecordedLaunches(Record, frozen=True, kw_only=True):
    """Whether the launches of one (variant, profile, backend) may be recorded and replayed on a GPU: `refused` says why
    not, "" if replays did what the model does at every size."""

    variant: str
    profile: str
    backend: str
    refused: str = ""


class RejectedBackend(Record, frozen=True, kw_only=True):
    """A backend that was tried for a variant and not measured to the end, or refused, and why.  `cpu_s_per_row` is
    known of one that fell behind, in batches of `batch` rows (0: not known)."""

    variant: str
    backend: str
    why: str
    batch: int = 0
    cpu_s_per_row: float = 0.0


class FamilyProfile(Record, frozen=True, kw_only=True):
    """All that was measured of a family on this machine, with the key that invalidates it.

    `front_ms`: milliseconds of work that HTTP and the front end add to what the router sees (0: not known).
    `turn_j`: joules of a turn of the front end's event loop after a pause of 8 ms, on cores (0: not known, or none)."""

    family: str
    key: str
    machine: str
    made_at: str
    quick: bool
    accuracy: tuple[AccuracyMeasurement, ...]
    latency: tuple[LatencyMeasurement, ...]
    backend: dict[str, str]
    base: BasePoint
    notes: tuple[str, ...] = ()
    cascade: CascadeProfile | None = None
    front_ms: float = 0.0
    turn_j: float = 0.0
    memory: tuple[MemoryMeasurement, ...] = ()
    context_bytes: dict[str, int] = {}
    """Bytes that a worker holds on a slice beside its variants, by profile."""
    recorded: tuple[RecordedLaunches, ...] = ()
    left_out: tuple[RejectedBackend, ...] = ()


# --- carbon and energy ------------------------------------------------------------------------------------------------


class Reading(Record, frozen=True, kw_only=True):
    """A carbon intensity in gCO2e/kWh with all that a reader needs to judge it.

    `method` says how the value is known:

    published    recorded by the provider
    estimated    the provider's own estimate
    forecast     foreseen: by the provider, by a file's later rows, or as the mean of past days
    synthetic    a formula, of no real grid
    configured   stated by the operator
    stand-in     `carbon.configured_g_per_kwh`, because no source has a value
    unknown      a file that does not say

    `replayed`: of another time than it is used at.  `state` says where in the chain of sources it comes from
    (`clover.carbon.chain`).  It holds from `at_s`, the grid time (Unix seconds) it is of, for `step_s` seconds (0: for
    a step of its source); `age_s` is grid time since `at_s`.
    """

    g_per_kwh: float
    at_s: float
    provider: str
    zone: str = ""
    signal: Literal["average", "marginal", "unknown"] = "unknown"
    scope: Literal["lifecycle", "direct", "unknown"] = "unknown"
    method: Literal["published", "estimated", "forecast", "synthetic", "configured", "stand-in", "unknown"] = "unknown"
    replayed: bool = False
    estimated: bool = False
    age_s: float = 0.0
    step_s: float = 0.0
    state: Literal["fresh", "stale", "fallback", "forecast", "seasonal", "configured"] = "fresh"

    @property
    def known(self) -> str:
        """How grams at this intensity say that it is known: the method, "replayed published" if of another time."""
        return f"replayed {self.method}" if self.replayed else self.method


class EnergySample(Record, frozen=True, kw_only=True):
    """Cumulative joules of a device at a monotonic time.  `total_j` never decreases; `idle_w` is its idle power.

    `epoch` counts how often the meter had to begin anew: what was used between samples of different epochs is unknown.
    `uncertainty`: how far off modelled joules may be, as (-0.2, 0.4) of them; None if measured, or without a range;
    `active_uncertainty`: the same of those above idle.

    A GPU with a context on it draws `awake_w` beyond `idle_w` at rest, 0 without one; `awake_j` are the joules of that
    so far.  `shared`: processes of others that computed on it, or may have, since the last sample; `strangers`: whether
    one of theirs has a context on it, at work or not.
    """

    device: str
    at_ns: int
    total_j: float
    idle_w: float
    method: Method
    epoch: int = 0
    uncertainty: tuple[float, float] | None = None
    active_uncertainty: tuple[float, float] | None = None
    awake_w: float = 0.0
    awake_j: float = 0.0
    shared: tuple[str, ...] = ()
    strangers: bool = False


class CpuTimes(Record, frozen=True, kw_only=True):
    """Nanoseconds of CPU time so far: of the server's process tree, of the server's own process alone, of control in
    that process, and of everything that runs on the machine (0: not known)."""

    tree_ns: int
    server_ns: int
    control_ns: int = 0
    machine_ns: int = 0


class MeteredWindow(Record, frozen=True, kw_only=True):
    """Active joules that a meter attributes to some workers of a family in a window, and the joules that the
    uncorrected profile expects for their work, by (variant, profile of the slice).

    `shared`: the meter counts everything on the device, also workers that ended no batch in this window and so are not
    in `expected_j`.  Otherwise it counts only the one in `expected_j`."""

    device: str
    joules: float
    expected_j: dict[tuple[str, str], float]
    shared: bool


class WorkReport(Record, frozen=True, kw_only=True):
    """What the workers of a family did since the last report.

    `served`: by (variant, profile of the slice, rows of a batch) how many batches, and how many seconds these took
    together, by the workers' own clocks and without what a pause before a batch adds.  `metered`: what it took, in as
    many parts as can be told apart."""

    served: dict[tuple[str, str, int], tuple[float, float]] = {}
    metered: tuple[MeteredWindow, ...] = ()


class FrontLag(Record, frozen=True, kw_only=True):
    """How many milliseconds longer than at the quietest moments since the start 95 % of what clients send waits at most
    for the front end's event loop, over the last minutes; and how many windows of probes were ever seen
    (`clover.http.loop_lag`)."""

    ms: float
    windows: int


class Receipt(Record, frozen=True, kw_only=True):
    """What one answer cost.  `accuracy` is the profile's expectation in percent, row-weighted over the request.  `path`
    holds the variants that each row was asked of in a cascade ("small>xlarge"); empty without one.  `method` says how
    `energy_j` is known, `intensity` how the carbon intensity is (None: nothing was read yet)."""

    variant: str
    accuracy: float
    energy_j: float
    carbon_mg: float
    intensity_g_per_kwh: float
    method: Method
    intensity_state: str = "fresh"
    intensity: Reading | None = None
    pue: float = 1.0
    """What `carbon_mg` was multiplied by for the data centre's overhead."""
    path: tuple[str, ...] = ()
    limited: int = 0
    """Rows that kept a cheaper variant's answer because their client is over its limit of escalations."""
    cached: bool = False
    """Whether the answer was kept from an earlier request: `energy_j` is that of the look-up then."""
    version: str = ""
    """The version of the model that answered, while a new one is being rolled out."""


# --- plans ------------------------------------------------------------------------------------------------------------


class Routing(Record, frozen=True, kw_only=True):
    """The fast knobs, which turn between two requests: the share of rows per variant (sums to 1), and how each variant
    forms batches.

    `largest`: rows that a batch of the variant may hold; absent: no limit but the worker's.  `wait_ms`: how long a row
    of the variant may wait for its batch to fill; absent: the family's `max_queue_delay_ms`.  `chain` and `thresholds`
    belong to cascades; an empty chain means every row is answered by the variant it was routed to."""

    shares: dict[str, float]
    largest: dict[str, int] = {}
    wait_ms: dict[str, float] = {}
    chain: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()


class Prediction(Record, frozen=True, kw_only=True):
    """What the model says a plan will do.  `energy_j_per_row` is active energy; `idle_j_per_row` what devices draw for
    having workers at all, where a plan may leave some without (`ObjectiveConfig.spared_w`; of cores,
    `DeviceShape.core_sleep_w`), else 0."""

    p95_ms: float
    accuracy: float
    energy_j_per_row: float
    utilisation: float
    idle_j_per_row: float = 0.0
    method: Method = "modelled"

    @property
    def joules(self) -> float:
        """Of a row, as far as plans differ in it."""
        return self.energy_j_per_row + self.idle_j_per_row


class ObjectiveConfig(Record, frozen=True, kw_only=True):
    """Which objective a family is planned by.

    form "paper": maximise L x dCarbon - (1 - L) x dAccuracy; form "floor": minimise carbon.  Both subject to
    p95 <= `slo_ms` and request-weighted accuracy >= `accuracy_floor` (percent), which plans keep `accuracy_margin`
    points above, as far as the best variant allows.  With `waits` plans may let rows wait for fuller batches.  Plans
    keep the SLO also where services take up to `profile_error` (a part) longer than profiled.  `lam` (L) null: derived
    so that the best variant and the cheapest mix at the floor break even at `reference_g_per_kwh`.

    `accuracy_budget`: points below the best variant that rows may lose on average, for the policies that hold to one
    (`budget` over `budget_horizon_s` of grid time, `static:mix` at any time); null: they hold to the floor.

    `spared_w`: idle watts that a device spares while it has no workers, because it is parked or released; a plan may
    then leave devices without.  Null: every device has workers.  `least_awake` devices have workers in any case.  Fewer
    than have workers now are only gone down to if they serve `sleep_room` times the rate.

    With `cascade` plans may have a chain, where the profile knows what the family's confidence is worth; chains of
    several stages keep `cascade_margin` above the floor instead (null: the same margin).
    """

    form: Literal["paper", "floor"]
    slo_ms: float
    accuracy_floor: float
    accuracy_margin: float = 0.0
    cascade_margin: float | None = None
    lam: float | None
    reference_g_per_kwh: float
    max_utilisation: float = 0.85
    profile_error: float = 0.0
    waits: bool = False
    accuracy_budget: float | None = None
    budget_horizon_s: float = 86_400.0
    spared_w: float | None = None
    least_awake: int = 1
    sleep_room: float = 1.0
    cascade: bool = False


class Ahead(Record, frozen=True, kw_only=True):
    """A part of the time to come: how many grid seconds, at which intensity, and the rows expected in them.

    A row of these need not be in order but for the first, which is now: hours far away are put together by what they
    are like, because a budget asks how much clean time is left and not when it comes."""

    seconds: float
    g_per_kwh: float
    rows: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds if self.seconds > 0.0 else 0.0


class Demand(Record, frozen=True, kw_only=True):
    """Rows a second that ask for `accuracy` percent or more: that of `variant`, the least accurate that serves them."""

    variant: str
    accuracy: float
    rate: float


class Asked(Record, frozen=True, kw_only=True):
    """Rows that asked for an accuracy, by the variant they need (of `accuracy` percent): how many a second lately, how
    many since the start, how many wait because no worker was there when they came, and how many of all were refused for
    that."""

    accuracy: float
    rows_per_s: float
    rows: int = 0
    waiting: int = 0
    refused: int = 0


class SandboxOrder(Record, frozen=True, kw_only=True):
    """How a process is confined before code of a family runs in it (`clover.worker.sandbox`).

    `required`: it does not run if the kernel cannot confine it wholly.  `read` and `write` are further paths that the
    family may read, and change; `processes`: it may start processes and programs."""

    required: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    processes: bool = False


class Declined(Record, frozen=True, kw_only=True):
    """Why no worker comes now for rows that ask for an accuracy, and after how many seconds asking again may help
    (null: it does not).  `waits`: one is wanted and held back for a moment; rows may wait for it until their
    deadline."""

    why: str
    retry_after_s: float | None = None
    waits: bool = False


class State(Record, frozen=True, kw_only=True):
    """All a policy may look at.  No clock and no I/O: the same state gives the same plan.

    For an accuracy budget: `ahead`, what is expected until its horizon ends (the first from now on), `forecast`, where
    that comes from, and of the part of the horizon that is over the rows served and the sum of their accuracies
    (percent x rows).

    `memory`: by profile of the slice, the bytes that workers there may hold together (absent: not known).

    `demand`: of the rows, those that ask for an accuracy of their own, by the variant that they need, the least
    accurate first.  A plan has workers for them (`planning.model.problem`).

    `online`: the budget is spent by what was served alone, without the forecast (`planning.budget.target`).

    `least_saving_w`: the watts that a routing has to spare to be worth its accuracy.

    `resident`: the most variants that a worker holds; above 1 a placement may share its time between as many.
    `resident_bytes`: by profile, the bytes that a worker may hold (absent: not known, as many as `resident` says).
    `apart`: profiles, each with two variants (by name) that one worker did not hold together there."""

    family: str
    grid_s: float
    intensity: Reading
    arrival_rate: float
    p95_ms: float | None
    queue_rows: int
    objective: ObjectiveConfig
    profile: FamilyProfile
    devices: tuple[DeviceShape, ...]
    running: tuple[Assignment, ...]
    routing: Routing | None
    share: float = 1.0
    memory: dict[str, int] = {}
    seed: int = 0
    ahead: tuple[Ahead, ...] = ()
    forecast: str = ""
    served_rows: float = 0.0
    served_accuracy_rows: float = 0.0
    demand: tuple[Demand, ...] = ()
    online: bool = False
    least_saving_w: float = 0.0
    resident: int = 1
    resident_bytes: dict[str, int] = {}
    apart: tuple[tuple[str, str, str], ...] = ()


class Candidate(Record, frozen=True, kw_only=True):
    """One configuration a policy weighed; `awake`: on how many devices, or cores of a row (0: on all)."""

    configuration: Configuration
    routing: Routing
    prediction: Prediction
    score: float
    feasible: bool
    why: str = ""
    awake: int = 0


class Permitted(Record, frozen=True, kw_only=True):
    """A chain with thresholds (none: no cascade) that a configuration permits, and what is expected of it."""

    chain: tuple[str, ...]
    thresholds: tuple[float, ...]
    prediction: Prediction


class Plan(Record, frozen=True, kw_only=True):
    """What to run, how to route, what is expected of it, and why.

    `score` is the objective's value, higher is better; `bound` is an upper bound of it over all configurations, or
    null; `gap` is how far below the bound the score lies, as a part of what saving all of BASE's emissions would be
    worth; `feasible` false marks the least bad answer where no configuration meets the constraints.

    `permitted` is what its workers permit besides at this rate, from the most frugal to the most accurate: every stage
    below the utilisation limit, p95 within the SLO, accuracy above the floor.  Empty where that was not asked for.

    `nothing_to_save`: no routing spares as much as it has to (`State.least_saving_w`).
    """

    family: str
    policy: str
    configuration: Configuration
    deployment: tuple[Assignment, ...]
    routing: Routing
    prediction: Prediction
    score: float
    reason: str
    feasible: bool = True
    bound: float | None = None
    gap: float | None = None
    candidates: tuple[Candidate, ...] = ()
    evaluated: int = 0
    seconds: float = 0.0
    permitted: tuple[Permitted, ...] = ()
    nothing_to_save: bool = False

    @property
    def awake(self) -> tuple[str, ...]:
        """Devices that have workers."""
        return tuple(sorted({item.placement.device for item in self.deployment}))


StepKind = Literal["create", "spawn", "route", "drain", "destroy"]


class Step(Record, frozen=True, kw_only=True):
    """One step of a transition.  "spawn" means load, warm and wait for ready; "drain" means stop routing to it, wait
    for its outstanding rows, and let it exit.  `routed` of "route" names the workers that receive rows from then on.
    Steps of one `stage` follow each other and may run at once."""

    kind: StepKind
    assignment: Assignment | None = None
    placement: Placement | None = None
    routed: tuple[Assignment, ...] = ()
    stage: int = 0


class Transition(Record, frozen=True, kw_only=True):
    """Ordered steps from one deployment to another.  `lost_capacity` is the largest share of the smaller deployment's
    slices missing at any time (0 where old and new overlap).

    `capacity_floor` (rows/s, 0: none) is what may not be gone below, `lowest_capacity` the least that receives rows at
    any time; where it lies below the floor it does so for about `loses_s` seconds (`loses_how`: estimated, or by
    steps of its kind that were measured).

    `resident`: the workers that come without a start, as a process at their placement holds their variant.  `memory`:
    what room there is for two workers on a slice changed about the steps, or that it is not known, in words."""

    steps: tuple[Step, ...]
    kept: tuple[Assignment, ...]
    lost_capacity: float = 0.0
    capacity_floor: float = 0.0
    lowest_capacity: float = 0.0
    loses_s: float = 0.0
    loses_how: Literal["estimated", "measured"] = "estimated"
    resident: tuple[Assignment, ...] = ()
    memory: str = ""

    @property
    def starts(self) -> bool:
        """Whether a worker has to start: not if all that comes is resident."""
        return any(step.kind == "spawn" and step.assignment not in self.resident for step in self.steps)

    @property
    def holds(self) -> bool:
        """Whether the capacity floor is kept throughout."""
        return self.lowest_capacity >= self.capacity_floor


class Decision(Record, frozen=True, kw_only=True):
    """One turn of the controller, kept for `GET /v2/clover/decisions`.

    Of `count` equal turns in a row, `id`, `at` and `grid_s` are the first's, `last_at` and everything else the last's.
    It is dated when all of it was done, and was begun `seconds` before.  `failed`: no plan was made, or it could not be
    carried out; `fault`: the policy raised an exception.
    """

    id: int
    at: str
    grid_s: float
    family: str
    trigger: str
    mode: str
    inputs: dict[str, float | str | None]
    plan: Plan | None
    action: Literal["applied", "routed", "kept", "observed", "rolled back", "failed", "fault", "refused", "dry run"]
    detail: str = ""
    seconds: float = 0.0
    operator: str = ""
    count: int = 1
    last_at: str = ""


# --- work that can wait -----------------------------------------------------------------------------------------------


class WaitingRow(NamedTuple):
    """One line of a batch job: `number` counts its lines from 0 on, `body` is the JSON of the request."""

    job_id: str
    number: int
    custom_id: str
    model: str
    body: bytes


class RowAnswer(NamedTuple):
    """The answer to a waiting row: the HTTP `status` that the request would have got, the JSON of its `body`, what it
    cost, and the version of the model that gave it."""

    number: int
    status: int
    body: bytes
    receipt: Receipt | None = None
    version: str = ""


class JobView(NamedTuple):
    """A batch job that has rows left, as the runner sees it.  Times are grid time."""

    id: str
    model: str
    tenant: str
    rows_left: int
    deadline_s: float
    carbon: Literal["wait", "now"]
    created_s: float
    endpoint: str = ""
    rows: int = 0
    """Its rows in all, answered ones included."""


class BatchFile(Record, frozen=True, kw_only=True):
    """A file of the files API.  `order` rises with each file; `expires_s` is None if it stays until it is deleted."""

    id: str
    order: int
    owner: str
    name: str
    purpose: str
    size_bytes: int
    created_s: float
    expires_s: float | None = None


JobStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class BatchJob(Record, frozen=True, kw_only=True):
    """One batch of the batches API, as OpenAI describes it.  `ends` is the status that it is being finalised to."""

    id: str
    order: int
    owner: str
    endpoint: str
    model: str
    carbon: Literal["wait", "now"]
    window: str
    input_file: str
    output_file: str
    error_file: str
    metadata: dict[str, str]
    status: JobStatus
    created_s: float
    deadline_s: float
    in_progress_s: float | None = None
    finalizing_s: float | None = None
    cancelling_s: float | None = None
    ended_s: float | None = None
    expires_s: float | None = None
    ends: Literal["", "completed", "expired", "cancelled"] = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    repeated: int = 0
    energy_j: float = 0.0
    carbon_mg: float = 0.0
    scanned_bytes: int = 0
    scanned_lines: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    handed: int = 0
    errors: tuple[dict[str, Any], ...] = ()
