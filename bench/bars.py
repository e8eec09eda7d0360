"""What is saved at a given loss of accuracy: the bars of an independent study (`optimizer.md`), with our profile table.

    python -m bench.bars --traces DIR [--family efficientnet ...] [--loss 1 2 4] [--trace carbon_intensity]
                         [--seeds 3] [--json FILE]

Ten A100s, BASE at 0.6 of its capacity, its p95 the SLO, 48 hours, as in `python -m clover simulate --scenario paper`.
A loss is in percent of BASE's accuracy (`--points`: in points of accuracy).  For each loss:

`clover`, `oracle`, `objective`   the most that the policy saves at any L of a grid whose mean loss is within it: the
                                  paper's f per hour, for whoever knows the L beforehand
`budget`                          the accuracy budget over the whole trace, with a perfect forecast and with errors
`limit`                           what no schedule of plans can exceed (`research.simulate.horizon_bound`), all GPUs
                                  awake
`parked`, `released`              the budget and the limit where a GPU without workers draws 45 W or nothing

Joules, p95 and accuracy are modelled, on an analytical table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.common import show, write_json
from clover.research.simulate import families, forecasts, loads
from clover.research.simulate.paper import PARKED_W, Paper, PaperOptions
from clover.research.simulate.records import Run
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Rules, Scheme, Trace, World

LAMBDAS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 0.9)
ERROR = "error:15"


def main(argv: Sequence[str] | None = None) -> int:
    """Play; print a table a family."""
    parser = argparse.ArgumentParser(prog="python -m bench.bars", description=__doc__.split("\n")[0])
    parser.add_argument("--traces", required=True, help="a folder of traces")
    parser.add_argument("--trace", default="carbon_intensity", help="which of them, by its file's name without .csv")
    parser.add_argument("--family", nargs="*", default=[], help="all three by default")
    parser.add_argument("--loss", nargs="*", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--points", action="store_true", help="losses are in points, not in percent of BASE's accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="runs of CLOVER at each L [3]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    asked = PaperOptions(
        names=given.family,
        traces=[given.traces],
        lam=None,
        gpus=None,
        hours=None,
        start="",
        seeds=1,
        load=loads.parse("constant:0.6"),
        rules=Rules(),
        quick=False,
    )
    paper = Paper(asked)
    written = []
    for own, trace in paper.cells:
        if trace.name != given.trace:
            continue
        began = time.perf_counter()
        bars = Bars(own, trace, paper.slo_ms(own, asked.load), given.seeds)
        best = own.known.profile.base.accuracy
        losses = [loss if given.points else loss * best / 100.0 for loss in given.loss]
        rows = bars.rows(losses)
        unit = "points" if given.points else f"% of {best:g} %"
        print(f"\n{own.known.profile.family}, {trace.name}: % saved at a mean loss within so many {unit}")
        show(
            f"{time.perf_counter() - began:.0f} s",
            ["", *(f"{loss:g}" for loss in given.loss)],
            [[name, *("" if value is None else f"{100.0 * value:.1f}" for value in values)] for name, values in rows],
        )
        written.append({"family": own.known.profile.family, "trace": trace.name, "losses": losses, "rows": dict(rows)})
    write_json(given.json, {"arguments": vars(given), "families": families.names(), "bars": written})
    return 0


class Bars:
    """One family on one trace."""

    def __init__(self, own: World, trace: Trace, slo_ms: float, seeds: int) -> None:
        self._own, self._trace, self._slo_ms, self._seeds = own, trace, slo_ms, seeds
        self._base = self._play(Scheme("base", "base"))

    def rows(self, losses: Sequence[float]) -> list[tuple[str, list[float | None]]]:
        """Return for each policy what it saves within each loss (points)."""
        found: list[tuple[str, list[float | None]]] = []
        for policy in ("clover", "oracle", "objective"):
            points = [self._at(policy, lam) for lam in LAMBDAS]
            within = [[saved for lost, saved in points if lost <= loss + 0.005] for loss in losses]
            found.append((f"{policy}, best L", [max(saved, default=None) for saved in within]))
        for name, asleep_w in (("all awake", None), ("parked", PARKED_W), ("released", 0.0)):
            runs = [self._play(self._budget(loss, asleep_w)) for loss in losses]
            found.append((f"budget, {name}", [self._saved(run) for run in runs]))
            if asleep_w is None:
                wrong = replace(self._own.rules, forecast=forecasts.parse(ERROR))
                runs_wrong = self._under(wrong, lambda: [self._play(self._budget(loss, None)) for loss in losses])
                found.append((f"budget, {ERROR}", [self._saved(run) for run in runs_wrong]))
            found.append((f"limit, {name}", [self._limit(run) for run in runs]))
        return found

    def _at(self, policy: str, lam: float) -> tuple[float, float]:
        """Return points lost and part saved, on the mean over seeds where the policy draws."""
        seeds = range(self._seeds if policy == "clover" else 1)
        runs = [self._play(Scheme(policy, policy, lam=lam), seed) for seed in seeds]
        lost = sum(self._base.sums.accuracy - run.sums.accuracy for run in runs) / len(runs)
        return lost, sum(self._saved(run) for run in runs) / len(runs)

    def _under(self, rules: Rules, play_all: Callable[[], list[Run]]) -> list[Run]:
        before, self._own.rules = self._own.rules, rules
        try:
            return play_all()
        finally:
            self._own.rules = before

    @staticmethod
    def _budget(loss: float, asleep_w: float | None) -> Scheme:
        return Scheme("budget", "budget", accuracy_budget=loss, asleep_w=asleep_w)

    def _saved(self, run: Run) -> float:
        return 1.0 - run.sums.grams / self._base.sums.grams

    def _limit(self, run: Run) -> float | None:
        return None if run.limit_grams is None else 1.0 - run.limit_grams / self._base.sums.grams

    def _play(self, scheme: Scheme, seed: int = 0) -> Run:
        load = loads.parse("constant:0.6")
        return play(Case(self._own, self._trace, load, scheme, seed, "equal", self._slo_ms))


if __name__ == "__main__":
    raise SystemExit(main())
