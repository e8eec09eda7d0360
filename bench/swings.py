"""How well joules of variants on one meter are known after five minutes, with and without swings of their shares.

    python -m bench.swings                          # 24 seeds each of two, three and five variants
    python -m bench.swings --seeds 6 --tick 0.1     # a counter that moves ten times a second, read at any time
    python -m bench.swings --max-utilisation 0.41   # lanes with room for a fifth more rows, not half

Emulated: workers, meter and hidden factors of joules (half to one and a half times the profile's) are those of
`tests/support/mixed_meter.py`; the controller, what it learns, the quota and the model that bounds the swings are the
production ones, on a clock that passes a second a look.  No process is started and no GPU is asked.
"""

from __future__ import annotations

import argparse
import logging

from bench.common import show, write_json
from tests.support.mixed_meter import LOOK_S, RATE, SHARES, UTILISATION, MixRig, five_minutes

LIMIT = 0.05


def line(made: list[MixRig], seconds: int) -> dict[str, float | int | str]:
    """Return what came of rigs that differ by their seed alone."""
    off = [max(rig.off().values()) for rig in made]
    every = [value for rig in made for value in rig.off().values()]
    shares = [
        abs(rig.meter.rows[name] / sum(rig.meter.rows.values()) - share)
        for rig in made
        for name, share in rig.shares.items()
    ]
    moved = [sum(routing.shares != rig.shares for routing in rig.routings) / seconds for rig in made]
    return {
        "within": sum(value <= LIMIT for value in off),
        "seeds": len(made),
        "factors_within": sum(value <= LIMIT for value in every) / len(every),
        "worst_off": max(off),
        "typical_off": sorted(every)[len(every) // 2],
        "shares_off": max(shares),
        "moved": sum(moved) / len(moved),
        "still_on": sum(rig.rig.family.swings.on for rig in made),
    }


def main() -> None:
    """Run every number of variants with and without swings, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help="runs of each kind")
    parser.add_argument("--seconds", type=int, default=300, help="seconds of service")
    parser.add_argument("--tick", type=float, default=LOOK_S, help="seconds by which a reading of the counter is late")
    parser.add_argument(
        "--max-utilisation", type=float, default=0.85, help="how far lanes may be loaded; by plan they are to 0.34"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    logging.getLogger("clover").setLevel(logging.ERROR)
    found = []
    for count in SHARES:
        for on in (False, True):
            made = [
                five_minutes(
                    count,
                    seed,
                    tick_s=given.tick,
                    seconds=given.seconds,
                    swing_shares=on,
                    max_utilisation=given.max_utilisation,
                )
                for seed in range(given.seeds)
            ]
            found.append({"variants": count, "swings": on, **line(made, given.seconds)})
    title = (
        f"Joules of variants on one meter after {given.seconds} s (emulated: {RATE:g} rows/s, workers busy for "
        f"{UTILISATION:.0%} of the time, readings of the counter up to {given.tick:g} s late)"
    )
    rows = [
        [
            str(item["variants"]),
            "on" if item["swings"] else "off",
            f"{item['within']}/{item['seeds']}",
            f"{item['factors_within']:.0%}",
            f"{item['typical_off']:.1%}",
            f"{item['worst_off']:.1%}",
            f"{item['shares_off']:.2%}",
            f"{item['moved']:.0%}",
            str(item["still_on"]),
        ]
        for item in found
    ]
    names = ["variants", "swings", "seeds within 5 %", "factors within 5 %", "typical", "worst"]
    show(title, [*names, "share of rows off by", "time moved", "on at the end"], rows)
    write_json(given.json, {"seconds": given.seconds, "tick_s": given.tick, "found": found})


if __name__ == "__main__":
    main()
