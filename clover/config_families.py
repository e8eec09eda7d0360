"""Settings of what is served, and for whom: families, `[[tenant]]` and `[[token]]` (`clover.config` has the others)."""

from __future__ import annotations

from typing import Annotated, Literal

from clover.config_section import Section
from clover.config_section import described as _help


class FamilyConfig(Section, frozen=True, kw_only=True):
    family: Annotated[str, _help("name of a shipped family, a folder, or module:attribute")]
    name: Annotated[str, _help("model name to serve it under; its own by default")] = ""
    accuracy_floor: (
        Annotated[
            float,
            _help("lowest accuracy of any plan, percent; by default 1 point below the best variant", ge=0, le=100),
        ]
        | None
    ) = None
    accuracy_margin: (
        Annotated[
            float,
            _help(
                "safety margin: points that plans aim for above the floor; by default as many as the size of the "
                "evaluation set makes necessary for 95 % confidence",
                ge=0,
            ),
        ]
        | None
    ) = None
    accuracy_budget: Annotated[
        float,
        _help("points below the best variant that the policies budget and static may give up on average", ge=0, le=100),
    ] = 0.5
    budget_horizon_s: Annotated[
        float,
        _help(
            "what the policy budget averages over: day, week, or seconds of the carbon data's time, an hour to a year",
            ge=3600,
            le=31_622_400,
        ),
    ] = 86_400.0
    slo_ms: (
        Annotated[
            float,
            _help(
                "target for the 95th percentile of latency; by default 1.2 x that of BASE, the best variant alone, "
                "over HTTP, at least 5 ms",
                gt=0,
            ),
        ]
        | None
    ) = None
    share: Annotated[float, _help("weight by which this family gets cores or GPUs beside the others", gt=0)] = 1.0
    queue_rows: Annotated[int, _help("rows that may wait for a worker; 0: as many as 128 MiB hold", ge=0)] = 0
    max_queue_delay_ms: Annotated[float, _help("longest wait to fill a batch; 0 never waits", ge=0)] = 0.0
    timeout_ms: Annotated[float, _help("deadline of a request that names none", gt=0)] = 30_000.0
    max_wait_slo: Annotated[
        float,
        _help(
            "longest predicted time until the answer, in SLOs: while rows wait, a row that would take longer is "
            "refused at once (429); 0 refuses none for that",
            ge=0,
        ),
    ] = 2.0
    only: Annotated[
        tuple[str, ...], _help("variants to measure and serve, as if the family had no others; empty: all")
    ] = ()
    variant: Annotated[str, _help("serve this variant only; the controller leaves the family alone")] = ""
    relief: Annotated[
        str,
        _help(
            "variant for standby workers on every slice, which take rows while more arrive than the planned workers "
            "serve in time; auto takes the cheapest variant, empty none"
        ),
    ] = ""
    resident: Annotated[
        str,
        _help(
            "variants that one worker holds, so that rows go to another one without a new process: auto takes all that "
            "fit into its part of the memory, a number at most so many, off one"
        ),
    ] = "auto"
    audit: Annotated[
        float,
        _help(
            "fraction of rows that the best variant answers again in the background, to check the others (at the "
            "reference intensity); at least 0.001 in each hour in which it has a worker, at most 0.02 without an "
            "alarm; 0 turns audits off",
            ge=0,
            le=0.02,
        ),
    ] = 0.005
    guard: Annotated[
        Literal["act", "watch", "off"],
        _help(
            "if scores or agreement drift from the profile: act tightens the thresholds of the cascade, then stops "
            "using it; watch only reports"
        ),
    ] = "act"
    escalation_limit: Annotated[
        float,
        _help(
            "in a cascade, the rows of one client (an address, or a connection of one that sends nearly all rows) are "
            "escalated at most so many times as often as usual, unless they ask for an accuracy; 0 sets no limit",
            ge=0,
        ),
    ] = 2.0
    cache_answers: Annotated[
        float,
        _help(
            "megabytes of answers kept for rows that are asked again, for each tenant by itself; 0 keeps none",
            ge=0,
            le=65_536,
        ),
    ] = 0.0
    unload_after_s: Annotated[
        float,
        _help(
            "seconds without a request after which the model's workers end; the next request starts them again, and "
            "waits; 0 never ends them",
            ge=0,
        ),
    ] = 0.0
    feedback_rows: Annotated[
        int,
        _help(
            "answered rows remembered by request id, for labels that clients send later; 0 turns feedback off",
            ge=0,
            le=10**6,
        ),
    ] = 10_000

    def most_resident(self, variants: int) -> int:
        """Return how many of `variants` variants one worker holds at most, memory permitting."""
        if self.resident == "off":
            return 1
        return variants if self.resident == "auto" else min(variants, int(self.resident))


class TenantConfig(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the tenant, as metrics and reports show it")]
    token: Annotated[
        str, _help("bearer token by which its requests are known; file:PATH takes the first line of a file")
    ] = ""
    token_sha256: Annotated[str, _help("SHA-256 of the token, 64 hexadecimal digits, instead of token")] = ""
    rate: Annotated[float, _help("most rows a second, over all models; 0 sets no limit", ge=0)] = 0.0
    burst: Annotated[int, _help("most rows at once, if there is a rate; 0 takes a second's worth", ge=0)] = 0
    priority: Annotated[
        int,
        _help(
            "rows served for each row of a client of priority 1 while both wait; under overload the lower is refused "
            "first",
            ge=1,
            le=100,
        ),
    ] = 1
    min_accuracy: Annotated[
        float, _help("clover_min_accuracy of requests that name none, percent; 0 asks for none", ge=0, le=100)
    ] = 0.0
    timeout_ms: Annotated[float, _help("deadline of requests that name none; 0 takes the family's", ge=0)] = 0.0
    may_control: Annotated[
        bool, _help("take its token for commands that change something, and show it state, decisions and metrics")
    ] = False


class TokenConfig(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the token, as the audit log shows its bearer")]
    token: Annotated[str, _help("the bearer token; file:PATH takes the first line of a file")] = ""
    token_sha256: Annotated[str, _help("SHA-256 of the token, 64 hexadecimal digits, instead of token")] = ""
    scopes: Annotated[
        tuple[str, ...],
        _help(
            "what it permits: infer asks models; read shows state, decisions, metrics, statistics and the dashboard; "
            "control changes the server"
        ),
    ] = ("infer", "read")
