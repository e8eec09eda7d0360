"""What a server prints once it is ready: address, families, devices, energy, carbon, controller, a first request."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from clover import profiles, terminal
from clover._version import __version__
from clover.backends import shown
from clover.carbon import caveat, describe
from clover.config import CarbonConfig
from clover.control.wording import slo_source, targets_words
from clover.errors import ProfileError
from clover.families import published
from clover.hints import program
from clover.profiling.measurement import inflated
from clover.quantities import joules, slice_words
from clover.runtime.served import Served
from clover.server import Server
from clover.telemetry.ledger.writing import LedgerStatus
from clover.types import Assignment, FamilyProfile, FamilySpec, Placement

log = logging.getLogger("clover.serve")


def show(server: Server) -> None:
    """Print the banner on standard output; if logs are JSON, log that the server is ready and what has to be known."""
    config = server.engine.config
    if config.log.json:
        page = f"{server.url}/dashboard" if server.engine.page is not None else ""
        where = {"url": server.url, "grpc": server.grpc_target, "dashboard": page}
        log.info("ready", extra={**where, "families": list(server.engine.served)})
        models = server.engine.controller.state()["models"]
        for name, served in server.engine.served.items():
            if cost := models.get(name, {}).get("terms"):
                log.info("%s: %s", name, cost)
            if untrained := published.caution(served.spec):
                log.warning("%s", untrained)
        if warning := caveat(server.engine.grid.reading):
            log.warning("%s", warning)
    else:
        print(text(server, terminal.line_width()), flush=True)
        sys.stdout.flush()


def text(server: Server, columns: int = terminal.UNWRAPPED) -> str:
    """Return the banner of a server that is ready, in lines of `columns` characters at most, but for its commands."""
    engine = server.engine
    config = engine.config
    rows = [("Clover", f"{__version__} at {server.url}")]
    if engine.page is not None:
        rows.append(("dashboard", f"{server.url}/dashboard"))
    if server.grpc_target:
        rows.append(("gRPC", f"at {server.grpc_target}{', with TLS' if config.listen.tls_cert else ''}"))
    models = engine.controller.state()["models"]
    for name, served in engine.served.items():
        rows.append(("family", f"{name}: {_variants(served.spec, served.profile)}"))
        model = models.get(name)
        if model is not None:
            said = [targets_words(model), slo_source(model), model["slo"]["words"]]
            said += [_doubt(served.profile, served.config.slo_ms), model["terms"]]
            rows += [("", line) for line in said if line]
            if advice := model["profile_correction"]["advice"]:
                rows.append(("warning", advice))
        else:
            rows.append(("", _unplanned(served)))
        rows.append(("", f"now {_running(served.fleet.ready_assignments(), served.spec)}"))
        if untrained := published.caution(served.spec):
            rows.append(("warning", untrained))
    shapes = engine.machine.shapes().values()
    labels = Counter(shape.label for shape in shapes)
    rows.append(("device", ", ".join(f"{n} x {label}" if n > 1 else label for label, n in labels.items())))
    if any(shape.emulated for shape in shapes):
        methods = {m.energy_method for s in engine.served.values() if s.profile for m in s.profile.latency}
        paces = f"at {' and '.join(sorted(methods))} paces and watts" if methods else "without paces"
        rows.append(("", f"answers are real, computed on this machine's cores {paces}: no figure is a GPU's"))
    accounts = engine.account.devices()
    alike: dict[str, list[str]] = {}
    for name, meter in engine.machine.meters.items():
        alike.setdefault(f"{accounts[name]['method']} ({meter.why})", []).append(name)
    for words, names in alike.items():
        which = f"{', '.join(names)}: " if len(alike) > 1 else ""
        rows.append(("energy", f"{which}{words}"))
    rows.append(("", _idle(sum(float(line["idle_w"]) + float(line["awake_w"]) for line in accounts.values()))))
    rows.append(("carbon", _carbon(server)))
    if warning := caveat(server.engine.grid.reading):
        rows.append(("warning", warning))
    if engine.ledger is not None and (kept := _ledger(engine.ledger.status, engine.served)):
        rows.append(("ledger", kept))
    control = config.controller
    steering = f"{control.mode}, policy {control.policy}, objective {control.objective}"
    rows.append(("control", steering if control.mode != "off" else "off"))
    if config.listen.insecure and not config.listen.token:
        rows.append(("warning", "no token: everyone who reaches this address may use and change the server"))
    first = next(iter(engine.served.values()))
    return "\n".join(
        [
            "",
            terminal.listing(rows, columns),
            "",
            "  try:",
            *_example(server.url, first.name, first.spec, config.listen.token),
            "",
        ]
    )


def _idle(watts: float) -> str:
    """Return what is drawn whatever is served; which part of the energy that is depends on a load yet to come."""
    return f"idle power {watts:.3g} W whatever is served; `{program()} ctl state` says what part of the energy that is"


def _ledger(status: LedgerStatus, served: Iterable[str]) -> str:
    """Return that what is counted is added to a file of earlier runs, which may have served other families; "" if it
    is new."""
    if not status.earlier_j:
        return ""
    since = datetime.fromtimestamp(status.since_s, UTC).strftime("%Y-%m-%d")
    words = f"goes on with {joules(status.earlier_j)} of earlier runs since {since}, in {status.path}"
    others = [name for name in status.earlier_today if name not in served]
    if not others:
        return words
    whose = f"figures of today have those of {', '.join(others)} in them, which earlier runs served"
    return f"{words}; {whose} (`--ledger-name NAME` keeps another file)"


def _running(workers: Iterable[Assignment], spec: FamilySpec) -> str:
    """Return what runs of a family, with equal workers counted: "2 x small (eager) on 1 core"; a worker that serves
    several variants is one: "half/full (eager) on 1 core"."""
    placed: dict[Placement, list[Assignment]] = {}
    for item in workers:
        placed.setdefault(item.placement, []).append(item)
    counts = Counter(
        (
            "/".join(item.variant for item in items),
            "/".join(dict.fromkeys(shown(item.backend, spec.variant(item.variant)) for item in items)),
            place.profile,
        )
        for place, items in placed.items()
    )
    return ", ".join(
        f"{f'{n} x ' if n > 1 else ''}{variants} ({backends}) on {slice_words(profile)}"
        for (variants, backends, profile), n in sorted(counts.items())
    )


def _doubt(profile: FamilyProfile | None, slo_ms: float | None) -> str:
    """Return why the default p95 target may be loose, and what to do; empty if it was given, or measured on a quiet
    machine."""
    doubt = inflated(profile) if profile is not None and slo_ms is None else ""
    return f"that target is loose: {doubt}; `--profile force` measures anew at the next start" if doubt else ""


def _unplanned(served: Served) -> str:
    """Return why a family is served without a plan, and what that means."""
    if not served.unmeasured:
        return "served without a plan: it was not profiled"
    return f"{served.unmeasured} while it serves. Until it is planned {served.best} answers, and no target is set"


def _variants(spec: FamilySpec, profile: FamilyProfile | None) -> str:
    shown = []
    for variant in spec.variants:
        figure = ""
        if variant.untrained:
            figure = " UNTRAINED"
        elif profile is not None:
            try:
                score = profiles.accuracy(profile, variant.name)
                known: list[str] = [score.method] if score.method != "measured" else []
                if fewer := profiles.cut_short(score):
                    known.append(f"by {fewer}")
                figure = f" {score.value:.1f} %" + (f" ({', '.join(known)})" if known else "")
            except ProfileError:
                figure = " (accuracy unknown)"
        shown.append(variant.name + figure)
    return ", ".join(shown)


def _carbon(server: Server) -> str:
    engine = server.engine
    config = engine.config.carbon
    reading = engine.grid.reading
    if reading is None:
        return f"{config.source}: not read yet"
    if reading.state == "configured":
        default = CarbonConfig().configured_g_per_kwh
        whose = "the default" if config.configured_g_per_kwh == default else "set by carbon.configured_g_per_kwh"
        return f"{config.source}: no source has a value; {reading.g_per_kwh:.0f} gCO2e/kWh stands in, {whose}"
    zone = f" {reading.zone}" if reading.zone not in ("", reading.provider) else ""
    speed = f", grid time x {config.trace_speed:g}" if config.trace_speed != 1 else ""
    return f"{reading.provider}{zone}: {reading.g_per_kwh:.0f} gCO2e/kWh ({describe(reading)}){speed}"


def _example(url: str, name: str, spec: FamilySpec, token: str) -> list[str]:
    """Return shell commands that ask for one inference, of a file or a row of zeros (strings are "0"), and for the
    state."""
    auth = ' -H "Authorization: Bearer $CLOVER_TOKEN"' if token else ""
    insecure = " -k" if url.startswith("https") else ""
    state = f"    curl -s{insecure}{auth} {url}/v2/clover/state"
    if file := _file_sent(spec):
        # The outputs come back binary, which curl does not write to a terminal.
        body = f"--data-binary @{file} -H 'Inference-Header-Content-Length: 0' | cat -v"
        return [f"    curl -s{insecure}{auth} {url}/v2/models/{name}/infer {body}", state]
    inputs = []
    for tensor in spec.inputs:
        shape = [1, *(1 if tensor.datatype == "BYTES" and axis < 0 else most for axis, most in
                      zip(tensor.shape, tensor.bound, strict=True))]  # fmt: skip
        zero = {"BYTES": '"0"', "BOOL": "False"}.get(tensor.datatype, "0")
        head = f'"name": "{tensor.name}", "shape": {shape}, "datatype": "{tensor.datatype}"'
        inputs.append(f'{{{head}, "data": [{zero}] * {math.prod(shape)}}}')
    body = f'import json; print(json.dumps({{"inputs": [{", ".join(inputs)}]}}))'
    return [
        f"    python3 -c '{body}' \\",
        f"      | curl -s{insecure}{auth} {url}/v2/models/{name}/infer -d @-",
        state,
    ]


def _file_sent(spec: FamilySpec) -> str:
    """Return what a file may be called that is sent as it is; "" if the family does not take one."""
    if spec.steps is None or not spec.stepped or not spec.steps.before or len(spec.inputs) != 1:
        return ""
    takes_file = spec.steps.run == "worker" and spec.inputs[0].datatype == "BYTES"
    files = {"decode-image": "picture.jpg", "decode-wav": "sound.wav"}
    return files.get(str(spec.steps.before[0]["step"]), "") if takes_file else ""
