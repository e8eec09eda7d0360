"""The backends that were tried for each variant as text: what a row takes, how right it is, and why one was chosen."""

from __future__ import annotations

from collections.abc import Callable

from clover.profiling.choose import times
from clover.terminal import Column, plain, wrapped
from clover.types import FamilyProfile

_COLUMNS = (
    Column("variant", right=False),
    Column("backend", right=False),
    Column("alone"),
    Column("in batches"),
    Column("accuracy %"),
    Column("same answers", spare=1),
    Column("", right=False),
)


def backend_table(profile: FamilyProfile, width: int, columns: int, shown: Callable[[str, str], str]) -> list[str]:
    """Return a table of `width` characters and sentences in lines of `columns`, or nothing if there was no choice.
    `shown` gives the name that people are shown of a (variant, backend)."""
    tried = dict.fromkeys([
        *((m.variant, m.backend) for m in profile.latency), *((one.variant, one.backend) for one in profile.left_out)
    ])  # fmt: skip
    if len(tried) == len(profile.backend):
        return []
    scores = {(item.variant, item.backend): item for item in profile.accuracy}
    left_out = {(one.variant, one.backend): one for one in profile.left_out}
    rows = []
    for variant, chosen in profile.backend.items():
        best = _cost(profile, variant, chosen)
        names = sorted((name for of, name in tried if of == variant), key=lambda name: name != chosen)
        for name in names:
            cost, score, gone = (
                _cost(profile, variant, name),
                scores.get((variant, name)),
                left_out.get((variant, name)),
            )
            if not cost and gone is not None and gone.batch:
                cost = {gone.batch: gone.cpu_s_per_row}
            largest = max(best)
            rows.append((
                variant,
                shown(variant, name),
                *(f"{cost[batch] * 1e3:.3f}" if batch in cost else "" for batch in (1, largest)),
                f"{score.value:.2f}" if score is not None else "",
                f"{score.agreement:.2%}" if score is not None else "",
                "chosen" if name == chosen else gone.why.removeprefix("a row takes ") if gone is not None else "",
            ))  # fmt: skip
    lines, _ = plain(_COLUMNS, rows, width)
    about = (
        "backends that were tried, one after the other, with CPU milliseconds a row, alone and in batches: the chosen "
        "one was measured again later; one whose answers may differ from eager's has to save a tenth"
    )
    return ["", wrapped(about, columns, "  "), *lines, *(wrapped(text, columns, "  ") for text in gains(profile))]


def gains(profile: FamilyProfile) -> list[str]:
    """Return a sentence for each chosen backend other than eager: how much cheaper it makes which variants.

    For example: "onnxruntime-int8 takes 2.9 to 4.6 x less CPU a row than eager (medium, large), at -0.10 to +0.06
    points of accuracy; leave it out of --backends to turn it off".
    """
    scores = {(item.variant, item.backend): item for item in profile.accuracy}
    texts = []
    for name in dict.fromkeys(profile.backend.values()):
        variants = [variant for variant, chosen in profile.backend.items() if chosen == name]
        ratios, points = [], []
        for variant in variants:
            plain_cost, cost = _cost(profile, variant, "eager"), _cost(profile, variant, name)
            if name == "eager" or not set(plain_cost) & set(cost):
                continue
            ratios.append(times(plain_cost, cost))
            points.append(scores[variant, name].points)
        if ratios and max(ratios) > 1.0:
            measured = scores[variants[0], name].method == "measured"
            at = f", at {_range(points, '+.2f')} points of accuracy" if measured else ", with the same answers"
            less = f"{name} takes {_range(ratios, '.1f')} x less CPU a row than eager ({', '.join(variants)})"
            texts.append(f"{less}{at}; leave it out of --backends to turn it off")
    return texts


def _cost(profile: FamilyProfile, variant: str, backend: str) -> dict[int, float]:
    """Return CPU seconds a row by batch size, on the smallest slice that the variant was measured on."""
    mine = [m for m in profile.latency if (m.variant, m.backend) == (variant, backend)]
    return {m.batch: m.cpu_s_per_row for m in mine if m.profile == mine[0].profile}


def _range(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
