"""A profile as text: the table of what serves, the table of the backends that were tried, and notes."""

from __future__ import annotations

from clover.backends import shown
from clover.profiles import base_p95_ms, cut_short
from clover.profiling.backend_table import backend_table
from clover.profiling.pareto import cascades
from clover.quantities import percent, slice_words
from clover.terminal import UNWRAPPED, Column, plain, wrapped
from clover.types import AccuracyMeasurement, FamilyProfile, FamilySpec

_COLUMNS = (
    Column("variant", right=False),
    Column("profile", right=False),
    Column("backend", right=False),
    Column("batch"),
    Column("threads", spare=2),
    Column("p50 ms", spare=1),
    Column("p95 ms"),
    Column("mJ/row"),
    Column("CPU ms/row", spare=3),
    Column("accuracy %", right=False),
    Column("rows", spare=4),
)


def table(profile: FamilyProfile, width: int, *, spec: FamilySpec | None = None, columns: int = UNWRAPPED) -> str:
    """Return the profile as a table that fits into `width` characters, with its notes in lines of `columns`.  With
    `spec`, variants that run by themselves are said to."""

    def ran(variant: str, backend: str) -> str:
        return shown(backend, spec.variant(variant)) if spec is not None else backend

    scores = {(item.variant, item.backend): item for item in profile.accuracy}
    rows = []
    for m in profile.latency:
        if m.backend != profile.backend.get(m.variant):
            continue
        score = scores[m.variant, m.backend]
        spread = f" ± {(score.high - score.low) / 2:.2f}" if score.samples else f" ({_known(score)})"
        if score.method == "proxy":
            spread += " (proxy)"
        cells = (
            m.variant,
            m.profile,
            ran(m.variant, m.backend),
            str(m.batch),
            str(m.threads),
            f"{m.p50_ms:.3f}",
            f"{m.p95_ms:.3f}",
            f"{m.energy_j_per_row * 1e3:.3f}",
            f"{m.cpu_s_per_row * 1e3:.3f}",
            f"{score.value:.2f}{spread}",
            cut_short(score).removesuffix(" rows") or (str(score.samples) if score.samples else ""),
        )
        rows.append(cells)
    lines, left = plain(_COLUMNS, rows, width)
    base = profile.base
    methods = ", ".join(sorted({m.energy_method for m in profile.latency}))
    kind = "quick" if profile.quick else "full"
    # What was calculated has no samples; only the answers were measured, on the CPU.
    paced = not any(m.samples for m in profile.latency)
    answers = "accuracy" if any(score.samples for score in profile.accuracy) else "agreement"
    what = f"{answers} by the {kind}" if paced else f"energy {methods}; {kind}"
    where = f"{base.variant} with {ran(base.variant, base.backend)} on {base.count} x {slice_words(base.profile)}"
    seen = f"p95 {base.p95_ms:.2f} ms ({base.method})"
    if profile.front_ms:
        seen = (
            f"p95 {base_p95_ms(profile):.2f} ms for a client over HTTP, where HTTP itself takes {profile.front_ms:.2f} "
            f"and BASE {base.p95_ms:.2f} ms in its workers ({base.method})"
        )
    alike = (base.variant, base.backend, base.profile)
    energy = sorted({m.energy_method for m in profile.latency if (m.variant, m.backend, m.profile) == alike})
    figures = (
        seen,
        f"{base.energy_j_per_row * 1e3:.3f} mJ/row ({' and '.join(energy) or base.method})",
        f"{base.accuracy:.2f} % ({_known(scores[base.variant, base.backend])})",
    )
    wider = f"left out at {width} columns: {', '.join(left)}; a wider terminal or --json FILE shows all"
    slices = {name: slice_words(name) for name in dict.fromkeys(m.profile for m in profile.latency)}
    cores = [f"{name} is {words}" for name, words in slices.items() if words != name]
    notes = [
        f"BASE: {where} at {percent(base.load)} load: {', '.join(figures)}",
        *([f"slices: {', '.join(cores)}"] if cores else []),
        *([f"times and energy of slices are {methods}: nothing of them was measured on a GPU"] if paced else []),
        f"{what} measurement of {profile.made_at}",
        *(f"note: {note}" for note in profile.notes),
        *([wider] if left else []),
    ]
    text = [f"{profile.family} on {profile.machine}", *lines, "", *(wrapped(note, columns, "  ") for note in notes)]
    if profile.cascade is not None and len(profile.backend) > 1:
        about, cost, *rest = cascades(profile.cascade, width)
        text += ["", wrapped(about, columns, "  "), wrapped(cost, columns, "  "), *rest]
    return "\n".join([*text, *(backend_table(profile, width, columns, ran) if not paced else ())])


def _known(score: AccuracyMeasurement) -> str:
    """Return how an accuracy is known, in a word."""
    return "UNTRAINED" if score.method == "none" else score.method
