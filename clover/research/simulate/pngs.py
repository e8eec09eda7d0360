"""The same charts as PNG, for papers and slides; the only module that needs matplotlib (extra `analysis`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from clover.research.simulate.records import Accounting, Results, Run, Summary


def write(results: Results, folder: Path) -> list[Path]:
    """Write one PNG of the hours and one of saving against accuracy for each family, trace and accounting; return their
    paths."""
    runs: dict[tuple[str, str, Accounting], dict[str, Run]] = {}
    for run in results.runs:
        runs.setdefault((run.family, run.trace, run.accounting), {}).setdefault(run.policy, run)
    trades: dict[tuple[str, str, Accounting], list[Summary]] = {}
    for item in results.summaries:
        trades.setdefault((item.family, item.trace, item.accounting), []).append(item)
    paths = []
    for key, own in runs.items():
        name = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in key)
        paths.append(_hours(own, ", ".join(key), folder / f"{name}-hours.png"))
        paths.append(_trade(trades[key], ", ".join(key), folder / f"{name}-trade.png"))
    return paths


def _hours(runs: dict[str, Run], title: str, path: Path) -> Path:
    figure, axes = pyplot.subplots(4, 1, figsize=(9, 10), sharex=True)
    first = next(iter(runs.values()))
    hours = [(step.at_s - first.steps[0].at_s) / 3600.0 for step in first.steps]
    axes[0].step(hours, [step.g_per_kwh for step in first.steps], where="post", color="black")
    for name, run in runs.items():
        per_hour = [3600.0 * step.grams / step.seconds for step in run.steps]
        axes[1].step(hours, per_hour, where="post", label=name)
        axes[2].step(hours, [step.accuracy for step in run.steps], where="post")
        axes[3].step(hours, [min(step.p95_ms, 3.0 * run.slo_ms) for step in run.steps], where="post")
    axes[3].axhline(first.slo_ms, color="red", linestyle="--")
    for axis, label in zip(
        axes, ("gCO2e/kWh", "gCO2e/h with idle", "accuracy %", "p95 ms (cut at 3 x SLO)"), strict=True
    ):
        axis.set_ylabel(label)
    axes[1].legend(fontsize=8)
    axes[3].set_xlabel("hours")
    figure.suptitle(f"{title} (modelled)")
    return _save(figure, path)


def _trade(items: list[Summary], title: str, path: Path) -> Path:
    figure, axis = pyplot.subplots(figsize=(7, 5))
    for item in items:
        axis.scatter(item.accuracy_loss, 100.0 * item.saving)
        axis.annotate(item.policy, (item.accuracy_loss, 100.0 * item.saving), fontsize=8)
    axis.set_xlabel("points of accuracy lost")
    axis.set_ylabel("% of gCO2e saved, idle power counted")
    figure.suptitle(f"{title} (modelled)")
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
