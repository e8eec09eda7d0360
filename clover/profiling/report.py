"""A profile as text: the table with its notes."""

from __future__ import annotations

from clover.profiling.pareto import cascades
from clover.types import FamilyProfile


def table(profile: FamilyProfile) -> str:
    """Return the profile as a table with its notes; the chosen backend of each variant is marked."""
    from rich.console import Console
    from rich.table import Table

    sheet = Table(title=f"{profile.family} on {profile.machine}", title_justify="left", pad_edge=False, box=None)
    right = {"batch", "threads", "p50 ms", "p95 ms", "mJ/row", "CPU ms/row"}
    heads = ("variant", "profile", "backend", "batch", "threads", "p50 ms", "p95 ms", "mJ/row", "CPU ms/row")
    for head in (*heads, "accuracy %", ""):
        sheet.add_column(head, justify="right" if head in right else "left", no_wrap=True)
    scores = {(item.variant, item.backend): item for item in profile.accuracy}
    for m in profile.latency:
        score = scores[m.variant, m.backend]
        if score.samples:
            spread = (score.high - score.low) / 2
            shown = f"{score.value:.2f} ± {spread:.2f} (n={score.samples})"
        else:
            shown = f"{score.value:.2f} ({score.method})"
        chosen = "*" if profile.backend.get(m.variant) == m.backend else ""
        figures = (
            f"{m.p50_ms:.3f}",
            f"{m.p95_ms:.3f}",
            f"{m.energy_j_per_row * 1e3:.3f}",
            f"{m.cpu_s_per_row * 1e3:.3f}",
        )
        sheet.add_row(m.variant, m.profile, m.backend, str(m.batch), str(m.threads), *figures, shown, chosen)
    console = Console(width=140, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(sheet)
    base = profile.base
    methods = ", ".join(sorted({m.energy_method for m in profile.latency}))
    kind = "quick" if profile.quick else "full"
    # What was calculated has no samples; only the answers were measured, on the CPU.
    paced = not any(m.samples for m in profile.latency)
    what = f"accuracy by the {kind}" if paced else f"energy {methods}; {kind}"
    where = f"{base.variant} with {base.backend} on {base.count} x {base.profile} at 60 % load"
    cost = f"p95 {base.p95_ms:.2f} ms, {base.energy_j_per_row * 1e3:.3f} mJ/row, {base.accuracy:.2f} %"
    lines = [
        *(line.rstrip() for line in capture.get().rstrip().splitlines()),
        "",
        f"BASE: {where}: {cost} ({base.method})",
        *([f"times and energy of slices are {methods}: nothing of them was measured on a GPU"] if paced else []),
        f"* the backend served; {what} measurement of {profile.made_at}",
        *(f"note: {note}" for note in profile.notes),
    ]
    if profile.cascade is not None:
        lines += ["", *cascades(profile.cascade)]
    return "\n".join(lines)
