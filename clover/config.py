"""Every setting of Clover, once: frozen records with their defaults and one line of help each.

The command line, the environment (`CLOVER_*`), `config.toml` and the embedding API all derive from these records
(`clover.settings` reads them).  Unknown keys are errors.  Units stand in the names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


def _help(text: str, **limits: float) -> Any:
    """One line of help and the range (ge, gt, le, lt) of a setting; `clover.settings` enforces it and names it."""
    return msgspec.Meta(description=text, **limits)  # type: ignore[call-overload]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every group of settings."""


class ListenConfig(Section, frozen=True, kw_only=True):
    host: Annotated[str, _help("address to bind; other than loopback needs a token or --insecure")] = "127.0.0.1"
    port: Annotated[int, _help("TCP port; 0 takes a free one", ge=0, le=65535)] = 8080
    control: Annotated[str, _help("unix:PATH moves mutating calls to a socket of mode 0600")] = ""
    token: Annotated[str, _help("bearer token for mutating calls, and for all calls on a non-loopback bind")] = ""
    token_file: Annotated[str, _help("file whose first line is the token, instead of token")] = ""
    insecure: Annotated[bool, _help("allow a non-loopback bind without a token")] = False
    allowed_hosts: Annotated[tuple[str, ...], _help("further Host names to accept")] = ()
    tls_cert: Annotated[str, _help("PEM certificate chain; turns TLS on")] = ""
    tls_key: Annotated[str, _help("PEM key of the certificate")] = ""


class LimitsConfig(Section, frozen=True, kw_only=True):
    body_bytes: Annotated[int, _help("largest request body, also after inflating", ge=1)] = 64 << 20
    line_bytes: Annotated[int, _help("largest request line", ge=64)] = 16 << 10
    head_bytes: Annotated[int, _help("largest request head", ge=64)] = 32 << 10
    headers: Annotated[int, _help("most header fields", ge=1)] = 100
    json_depth: Annotated[int, _help("deepest JSON nesting", ge=1)] = 100
    connections: Annotated[int, _help("most open connections", ge=1)] = 8192
    pipelined: Annotated[int, _help("requests of one connection in progress before reading pauses", ge=1)] = 32
    head_s: Annotated[float, _help("seconds to receive a whole head", gt=0)] = 10.0
    body_s: Annotated[float, _help("seconds to receive a whole body", gt=0)] = 30.0
    write_s: Annotated[float, _help("seconds a client may leave an answer unread", gt=0)] = 30.0
    idle_s: Annotated[float, _help("seconds a connection may stay idle", gt=0)] = 60.0
    drain_s: Annotated[float, _help("seconds to answer what was received at shutdown", ge=0)] = 30.0
    drain_delay_s: Annotated[float, _help("seconds of failing readiness before accepting stops", ge=0)] = 0.0


class FamilyConfig(Section, frozen=True, kw_only=True):
    family: Annotated[str, _help("name of a shipped family, a folder, or module:attribute")]
    name: Annotated[str, _help("model name to serve it under; its own by default")] = ""
    accuracy_floor: Annotated[float, _help("percent; best variant - 1.0 point by default", ge=0, le=100)] | None = None
    accuracy_margin: Annotated[float, _help("points that plans stay above the floor, so that hours do too", ge=0)] = (
        0.25
    )
    accuracy_budget: Annotated[
        float, _help("points below the best variant that policies budget and static may lose on average", ge=0, le=100)
    ] = 0.5
    budget_horizon_s: Annotated[
        float, _help("grid seconds over which policy budget averages; an hour to a year", ge=3600, le=31_622_400)
    ] = 86_400.0
    slo_ms: Annotated[float, _help("p95 target; 1.2 x the profiled p95 of BASE by default", gt=0)] | None = None
    share: Annotated[float, _help("weight of this family in the machine's capacity", gt=0)] = 1.0
    slots: Annotated[int, _help("rows that may wait or run at once; 0 sizes the slab to slab_bytes", ge=0)] = 0
    slab_bytes: Annotated[int, _help("bound of the shared memory of the family", ge=4096)] = 128 << 20
    queue_rows: Annotated[int, _help("rows that may wait; 0 takes every slot", ge=0)] = 0
    max_queue_delay_ms: Annotated[float, _help("longest wait to fill a batch; 0 never waits", ge=0)] = 0.0
    timeout_ms: Annotated[float, _help("deadline of a request that names none", gt=0)] = 30_000.0
    variant: Annotated[str, _help("pin one variant: no controller for this family")] = ""
    relief: Annotated[
        str,
        _help(
            "variant that stands by on every slice and takes rows while more come than the plan serves in time; "
            "auto is the cheapest, empty none"
        ),
    ] = ""
    audit: Annotated[
        float,
        _help(
            "share of rows that the best variant answers too, in the background, at the reference intensity; never "
            "below 0.001 in any hour in which it has a worker, at most 0.02 without an alarm; 0 audits nothing",
            ge=0,
            le=0.02,
        ),
    ] = 0.005
    guard: Annotated[
        Literal["act", "watch", "off"],
        _help("where scores or agreement drift from the profile: act tightens and steps aside, watch only tells"),
    ] = "act"
    feedback_rows: Annotated[
        int, _help("answered rows remembered by request id for labels that come late; 0 takes none", ge=0, le=10**6)
    ] = 10_000


class CarbonConfig(Section, frozen=True, kw_only=True):
    source: Annotated[
        str, _help("synthetic | static:G | trace:FILE; a comma-separated list is a fallback chain")
    ] = "synthetic"
    trace_speed: Annotated[float, _help("grid seconds per wall second", gt=0)] = 1.0
    trace_start: Annotated[
        str,
        _help(
            "grid time to start at: now, first (row of the trace) or ISO 8601; "
            "by default now, but first for a trace that does not cover now or is sped up"
        ),
    ] = ""
    poll_s: Annotated[
        float,
        _help("wall seconds between two calls to a remote source; files and formulas are read at every look", gt=0),
    ] = 5.0
    max_age_s: Annotated[float, _help("grid seconds a last good value may be used", ge=0)] = 7200.0
    configured_g_per_kwh: Annotated[float, _help("value of last resort, always labelled", ge=0)] = 400.0
    pue: Annotated[float, _help("power usage effectiveness", ge=1)] = 1.5


class EnergyConfig(Section, frozen=True, kw_only=True):
    meter: Annotated[
        Literal["auto", "rapl", "modelled"], _help("auto takes RAPL where it is readable and says so")
    ] = "auto"
    idle_w: Annotated[float, _help("modelled idle power of the machine, watts a core", ge=0)] = 2.0
    core_w: Annotated[float, _help("modelled power of one busy core above idle, watts", ge=0)] = 8.0
    gpu_idle_w: Annotated[float, _help("idle power of one GPU, watts; null measures it at start", ge=0)] | None = None


class ControllerConfig(Section, frozen=True, kw_only=True):
    mode: Annotated[Literal["off", "observe", "active"], _help("off | observe | active")] = "active"
    policy: Annotated[
        str,
        _help(
            "objective, budget, budget:flat, static, static:VARIANT, base, clover, clover-artifact, blover, co2opt, "
            "oracle, oracle:alike, or module:attribute"
        ),
    ] = "objective"
    objective: Annotated[Literal["paper", "floor"], _help("form of the objective")] = "paper"
    lam: Annotated[float, _help("lambda of the paper's objective; null derives it", ge=0, le=1)] | None = None
    reference_g_per_kwh: Annotated[
        float, _help("intensity at which accuracy and carbon break even when lam is null", gt=0)
    ] = 250.0
    interval_s: Annotated[float, _help("wall seconds between looks at the triggers", gt=0)] = 1.0
    intensity_change: Annotated[float, _help("relative change of intensity that triggers a plan", ge=0)] = 0.05
    rate_change: Annotated[float, _help("relative change of the arrival rate that triggers a plan", ge=0)] = 0.25
    min_dwell_s: Annotated[float, _help("wall seconds between changes of configuration", ge=0)] = 5.0
    verify_s: Annotated[float, _help("wall seconds a new plan is watched before it counts as good", ge=0)] = 5.0
    max_utilisation: Annotated[float, _help("highest planned utilisation of any worker", gt=0, lt=1)] = 0.85
    cascade: Annotated[
        bool, _help("plans may ask a cheap variant first and dearer ones where it is not sure (needs a confidence)")
    ] = False
    profile_error: Annotated[
        float, _help("part by which services may take longer than profiled without a plan missing its SLO", ge=0, lt=1)
    ] = 0.0
    waits: Annotated[bool, _help("let rows wait for fuller batches where that saves energy within the SLO")] = False
    design_rate: Annotated[float, _help("rows a second to plan for at least; 0 takes what is observed", ge=0)] = 0.0
    capacity_floor: Annotated[
        float, _help("share of BASE's capacity no transition may go below; never below what arrives", ge=0, le=1)
    ] = 0.0
    allow_capacity_loss: Annotated[bool, _help("take a transition that cannot hold the capacity floor")] = False


class WorkersConfig(Section, frozen=True, kw_only=True):
    device: Annotated[
        str, _help("cpu | nvidia | nvidia:0,2 (some GPUs) | emulated:NAME:COUNT, as emulated:a100-40gb:2")
    ] = "cpu"
    pace: Annotated[str, _help("JSON file that says how fast variants run on slices of emulated GPUs")] = ""
    keep_instances: Annotated[bool, _help("leave our MIG instances at a clean stop, for the next start to adopt")] = (
        False
    )
    cores: Annotated[str, _help("cores workers may use, as 0-3,6; all of this process's by default")] = ""
    backends: Annotated[tuple[str, ...], _help("backends the profiler may choose from")] = (
        "eager",
        "aoti",
        "onnxruntime",
    )
    start_s: Annotated[float, _help("seconds a worker may take to become ready", gt=0)] = 60.0
    silent_s: Annotated[float, _help("seconds a batch may run before its worker is taken for stuck", gt=0)] = 30.0
    memory_bytes: Annotated[int, _help("address-space limit of a worker; 0 sets none", ge=0)] = 0


class LogConfig(Section, frozen=True, kw_only=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], _help("log level")] = "info"
    json: Annotated[bool, _help("one JSON object a line")] = False
    access: Annotated[bool, _help("log every request with its id")] = False


class ServerConfig(Section, frozen=True, kw_only=True):
    """The whole configuration of one server."""

    families: tuple[FamilyConfig, ...] = (FamilyConfig(family="fashion"),)
    listen: ListenConfig = ListenConfig()
    limits: LimitsConfig = LimitsConfig()
    carbon: CarbonConfig = CarbonConfig()
    energy: EnergyConfig = EnergyConfig()
    controller: ControllerConfig = ControllerConfig()
    workers: WorkersConfig = WorkersConfig()
    log: LogConfig = LogConfig()
    cache_dir: Annotated[str, _help("profiles and compiled artifacts; $XDG_CACHE_HOME/clover by default")] = ""
    profile: Annotated[Literal["auto", "require", "force"], _help("auto measures what is missing at start")] = "auto"
