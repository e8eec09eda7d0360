"""Every setting of Clover, once: frozen records with their defaults and one line of help each.

The command line, the environment (`CLOVER_*`), `config.toml` and the embedding API all derive from these records
(`clover.settings` reads them).  Unknown keys are errors.  Units stand in the names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from clover.config_families import FamilyConfig, TenantConfig, TokenConfig
from clover.config_records import BatchJobsConfig, LedgerConfig, LogConfig, OtelConfig, ReportConfig, RolloutConfig
from clover.config_section import SECRETS, Section
from clover.config_section import described as _help

__all__ = [
    "SECRETS",
    "BatchJobsConfig",
    "CarbonConfig",
    "ControllerConfig",
    "EmbodiedConfig",
    "EnergyConfig",
    "FamilyConfig",
    "LedgerConfig",
    "LimitsConfig",
    "ListenConfig",
    "LogConfig",
    "OtelConfig",
    "ProviderConfig",
    "ReportConfig",
    "RolloutConfig",
    "Section",
    "ServerConfig",
    "TenantConfig",
    "TokenConfig",
    "WorkersConfig",
]


class ListenConfig(Section, frozen=True, kw_only=True):
    host: Annotated[str, _help("address to bind; other than loopback needs a token or --insecure")] = "127.0.0.1"
    port: Annotated[int, _help("TCP port; 0 takes a free one", ge=0, le=65535)] = 8080
    grpc_port: (
        Annotated[
            int, _help("TCP port for gRPC (extra grpc); 0 takes a free one; without it there is none", ge=0, le=65535)
        ]
        | None
    ) = None
    control: Annotated[
        str, _help("unix:PATH takes commands that change something on this unix socket only (mode 0600)")
    ] = ""
    token: Annotated[
        str,
        _help(
            "bearer token for commands that change something; on an address other than loopback, for all requests; "
            "file:PATH takes the first line of a file"
        ),
    ] = ""
    insecure: Annotated[bool, _help("allow an address other than loopback without a token")] = False
    allowed_hosts: Annotated[tuple[str, ...], _help("more host names that requests may be addressed to")] = ()
    tls_cert: Annotated[str, _help("PEM certificate chain; turns TLS on")] = ""
    tls_key: Annotated[str, _help("PEM key of the certificate")] = ""
    dashboard: Annotated[bool, _help("serve the dashboard at /dashboard")] = True


class LimitsConfig(Section, frozen=True, kw_only=True):
    body_bytes: Annotated[int, _help("largest request body, also after decompression, bytes", ge=1)] = 64 << 20
    head_bytes: Annotated[int, _help("largest request line and headers together, bytes", ge=64)] = 32 << 10
    json_bytes: Annotated[
        int,
        _help(
            "largest JSON of an infer request, also after decompression, bytes; binary tensors do not count", ge=1024
        ),
    ] = 4 << 20
    connections: Annotated[int, _help("most open connections", ge=1)] = 8192
    held_bytes: Annotated[
        int,
        _help(
            "most bytes of unfinished request bodies and unread answers, of all connections; beyond it those that "
            "hold the most are closed",
            ge=1 << 20,
        ),
    ] = 1 << 30
    pipelined: Annotated[int, _help("requests of one connection in progress before no more are read from it", ge=1)] = (
        32
    )
    head_s: Annotated[float, _help("seconds to receive the request line and headers", gt=0)] = 10.0
    body_s: Annotated[float, _help("seconds to receive a request body", gt=0)] = 30.0
    write_s: Annotated[float, _help("seconds a client may leave an answer unread", gt=0)] = 30.0
    idle_s: Annotated[float, _help("seconds a connection may stay idle", gt=0)] = 60.0
    drain_s: Annotated[float, _help("seconds at shutdown to answer what was received", ge=0)] = 30.0
    drain_delay_s: Annotated[
        float, _help("seconds at shutdown during which readiness fails but requests are still accepted", ge=0)
    ] = 0.0


class ProviderConfig(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the provider, as carbon.source has it: electricity-maps, watttime, neso, ...")]
    user: Annotated[str, _help("name of your account, if the provider wants one (watttime)")] = ""
    key: Annotated[str, _help("key or password; file:PATH takes the first line of a file")] = ""
    url: Annotated[
        str, _help("address of a mirror, or of your server (carbon-aware-sdk): https, or http on a loopback address")
    ] = ""


class CarbonConfig(Section, frozen=True, kw_only=True):
    source: Annotated[
        str,
        _help(
            "where the carbon intensity comes from: synthetic (an invented grid), static:G, trace:FILE, auto:ZONE "
            "(live, without a key) or a provider as electricity-maps:ZONE (`clover carbon providers` lists them); a "
            "comma-separated list is a fallback chain"
        ),
    ] = "synthetic"
    trace_speed: Annotated[float, _help("seconds of the carbon trace that pass in one second", gt=0)] = 1.0
    trace_start: Annotated[
        str,
        _help(
            "time in the trace to start at: now, first (its first row) or ISO 8601; "
            "by default now, or first if the trace neither covers now nor just ended, or is sped up"
        ),
    ] = ""
    max_age_s: Annotated[
        float,
        _help("seconds (of the carbon data's time) that the last good value may be used if the source fails", ge=0),
    ] = 7200.0
    configured_g_per_kwh: Annotated[
        float,
        _help(
            "carbon intensity to use if every source fails and nothing is known of before; receipts and metrics say so",
            ge=0,
        ),
    ] = 400.0
    pue: Annotated[
        float,
        _help(
            "power usage effectiveness: energy of the data centre divided by the energy of its computers; grams are "
            "multiplied by it, joules are not",
            ge=1,
        ),
    ] = 1.5
    provider: Annotated[
        tuple[ProviderConfig, ...],
        _help(
            "keys and addresses of providers: tables [[carbon.provider]] in the file, JSON elsewhere: "
            '[{"name": "electricity-maps", "key": "file:PATH"}]'
        ),
    ] = ()


class EmbodiedConfig(Section, frozen=True, kw_only=True):
    machine_kg: (
        Annotated[
            float,
            _help(
                "embodied carbon of the machine without GPUs, kgCO2e; by default estimated by its CPUs from published "
                "figures",
                ge=0,
            ),
        ]
        | None
    ) = None
    gpu_kg: (
        Annotated[
            float,
            _help("embodied carbon of one GPU, kgCO2e; by default what is published of it, or else unknown", ge=0),
        ]
        | None
    ) = None
    life_years: Annotated[float, _help("years that the hardware is expected to be in use", gt=0)] = 4.0
    reserved: (
        Annotated[
            float,
            _help(
                "part of the machine that is reserved for this server; by default its cores divided by all cores of "
                "the machine",
                gt=0,
                le=1,
            ),
        ]
        | None
    ) = None


class EnergyConfig(Section, frozen=True, kw_only=True):
    meter: Annotated[
        Literal["auto", "rapl", "modelled"],
        _help("rapl: the CPU's counters; modelled: calculated; auto: RAPL if any"),
    ] = "auto"
    idle_w: (
        Annotated[float, _help("watts of a CPU at rest; by default measured (RAPL), or by processor", ge=0)] | None
    ) = None
    core_w: Annotated[float, _help("modelled watts that a busy CPU adds; by default by processor", ge=0)] | None = None
    gpu_idle_w: (
        Annotated[float, _help("idle power of one GPU, watts; by default it is measured at start", ge=0)] | None
    ) = None
    gpu_resident_w: (
        Annotated[
            float,
            _help("watts of one GPU whose workers rest; by default measured then", ge=0),
        ]
        | None
    ) = None
    gpu_meter: Annotated[
        Literal["auto", "nvml", "modelled"],
        _help("how GPUs are metered; auto models where NVML shows nothing"),
    ] = "auto"


class ControllerConfig(Section, frozen=True, kw_only=True):
    mode: Annotated[
        Literal["off", "observe", "active"],
        _help(
            "active applies plans, observe applies the first and logs what else it would do, off makes the first alone"
        ),
    ] = "active"
    policy: Annotated[
        str,
        _help(
            "objective, budget, budget:online, budget:flat, static, static:VARIANT, base, clover, clover-artifact, "
            "blover, co2opt, oracle, oracle:alike, or module:attribute"
        ),
    ] = "budget"
    objective: Annotated[
        Literal["paper", "floor"],
        _help("what plans maximise: paper weighs accuracy against carbon; floor saves carbon above the accuracy floor"),
    ] = "paper"
    lam: (
        Annotated[
            float,
            _help(
                "weight of carbon in the paper's objective (lambda); by default derived from reference_g_per_kwh",
                ge=0,
                le=1,
            ),
        ]
        | None
    ) = None
    reference_g_per_kwh: (
        Annotated[
            float,
            _help(
                "carbon intensity at which accuracy and carbon weigh alike if lam is derived, gCO2e per kWh; by "
                "default the median of the grid's history and forecast, 250 while less than a day of them is known",
                gt=0,
            ),
        ]
        | None
    ) = None
    verify_s: Annotated[float, _help("seconds that a new plan is watched before it counts as good", ge=0)] = 5.0
    max_utilisation: Annotated[float, _help("highest utilisation that plans give any worker", gt=0, lt=1)] = 0.85
    cascade: (
        Annotated[
            bool,
            _help(
                "let plans ask a cheap variant first, and a more accurate one if it is not sure; by default if the "
                "family declares a confidence"
            ),
        ]
        | None
    ) = None
    waits: (
        Annotated[
            bool,
            _help(
                "let rows wait for fuller batches if that saves energy within the SLO; by default if slo_ms is given"
            ),
        ]
        | None
    ) = None
    design_rate: Annotated[
        float, _help("plan for at least this arrival rate, rows per second; 0 plans for the observed rate", ge=0)
    ] = 0.0
    allow_capacity_loss: Annotated[bool, _help("make a change even if it cannot keep that capacity on the way")] = False
    sleep_after_s: Annotated[
        float,
        _help(
            "seconds for which GPUs (cores, if cores is auto) keep workers after more of them were needed, before "
            "plans may leave some without",
            ge=0,
        ),
    ] = 300.0


class WorkersConfig(Section, frozen=True, kw_only=True):
    device: Annotated[
        str,
        _help(
            "cpu, nvidia, nvidia:0-3,6, nvidia:mig (GPUs with MIG on), mig:UUID,... (as they are), "
            "emulated:NAME[:COUNT[:NUMBERS]] as emulated:a100-40gb:2, or emulated:pod-1g.10gb"
        ),
    ] = "cpu"
    pace: Annotated[str, _help("JSON file with how fast variants run on slices of emulated GPUs")] = ""
    keep_instances: Annotated[
        bool, _help("leave the MIG instances that Clover made when it stops, for the next start to use")
    ] = False
    cores: Annotated[
        str,
        _help("cores of workers, as 0-3,6 (all); auto: what the load needs"),
    ] = ""
    core_sleep_w: Annotated[
        float,
        _help("watts that plans take a core to spare while it has no worker, if cores is auto (modelled)", ge=0),
    ] = 0.1
    sleep: Annotated[
        Literal["park", "off"],
        _help(
            "park: GPUs that the load does not need have no worker processes, nor the last cores if cores is auto; "
            "off: all GPUs and cores have workers"
        ),
    ] = "park"
    backends: Annotated[tuple[str, ...], _help("backends to try")] = (
        "eager",
        "eager-tf32",
        "eager-fp16",
        "eager-bf16",
        "aoti",
        "onnxruntime",
        "openvino-bf16",
        "openvino",
        "onnxruntime-int8",
        "openvino-int8",
    )
    start_s: Annotated[float, _help("most seconds that a worker may take to start", gt=0)] = 60.0
    silent_s: Annotated[float, _help("seconds that a batch may run before its worker is restarted", gt=0)] = 30.0
    memory_bytes: Annotated[
        int, _help("bytes of addresses of a worker, and of a file that it writes; 0 sets no limit", ge=0)
    ] = 0
    total_bytes: Annotated[
        int,
        _help(
            "memory of the workers of all models together, in bytes: one with unload_after_s makes room for another "
            "that is asked; 0 takes what the machine has free",
            ge=0,
        ),
    ] = 0
    sandbox: Annotated[
        Literal["auto", "on", "off"],
        _help(
            "keep models from files, sockets and other processes; auto: as far as the kernel can, and not on GPUs; on: "
            "do not start otherwise"
        ),
    ] = "auto"
    sandbox_read: Annotated[tuple[str, ...], _help("more files and folders that models may read")] = ()
    sandbox_write: Annotated[tuple[str, ...], _help("files and folders that models may change")] = ()
    sandbox_processes: Annotated[bool, _help("let models start processes and programs")] = False


class ServerConfig(Section, frozen=True, kw_only=True):
    """The whole configuration of one server."""

    families: tuple[FamilyConfig, ...] = (FamilyConfig(family="fashion"),)
    tenants: tuple[TenantConfig, ...] = ()
    tokens: tuple[TokenConfig, ...] = ()
    secret_files: tuple[tuple[str, str], ...] = ()
    """No setting: what stands in a file (`token = "file:PATH"`), and its path, found while secrets are read."""
    listen: ListenConfig = ListenConfig()
    limits: LimitsConfig = LimitsConfig()
    carbon: CarbonConfig = CarbonConfig()
    energy: EnergyConfig = EnergyConfig()
    embodied: EmbodiedConfig = EmbodiedConfig()
    controller: ControllerConfig = ControllerConfig()
    workers: WorkersConfig = WorkersConfig()
    log: LogConfig = LogConfig()
    ledger: LedgerConfig = LedgerConfig()
    otel: OtelConfig = OtelConfig()
    report: ReportConfig = ReportConfig()
    rollout: RolloutConfig = RolloutConfig()
    batch_jobs: BatchJobsConfig = BatchJobsConfig()
    cache_dir: Annotated[str, _help("folder of profiles and artifacts; default: $XDG_CACHE_HOME/clover")] = ""
    state_dir: Annotated[str, _help("folder of the ledger and of batch jobs; $XDG_STATE_HOME/clover by default")] = ""
    require_manifest: Annotated[
        bool, _help("refuse families without manifest.sha256 (clover family manifest writes one)")
    ] = False
    profile: Annotated[
        Literal["auto", "wait", "require", "force"],
        _help(
            "auto serves at once and measures a missing profile meanwhile (on GPUs before), wait measures it before, "
            "require refuses to start without one, force always measures"
        ),
    ] = "auto"
