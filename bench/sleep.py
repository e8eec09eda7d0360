"""What a model that sleeps while nobody asks it gives back, and what it costs the request that wakes it.

    python -m bench.sleep [--parts footprint wakes at_once many night] [--wakes 200] [--minutes 10] [--json FILE]

`footprint`: PSS and CPU of the process tree of a server of `fashion`, over `--idle-s` seconds each: awake, asleep, and
after an unload by hand, which leaves the server without a family.  `wakes`: the time to the answer of single
requests to a sleeping model.  `at_once`: 1,000 requests, each on a connection of its own, to a sleeping model.  `many`:
twenty copies of the family, of which three fit into `workers.total_bytes`, asked as Zipf's law has it (exponent 1, in a
shuffled order) at `--rate` a second; then the same with all of them loaded.  `night`: twelve hours with a request an
hour, by arithmetic from the watts that the server says a sleeping model spares and the joules that waking took here
(modelled), on these cores and on an emulated A100.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from bench.common import ROOT, ServerProcess, cpu_seconds, pss_bytes, served, show, tree, write_json
from bench.load import quantile

SHIRT = (ROOT / "docs/shirt.json").read_bytes()
COPIES, FIT = 20, 3
NIGHT_H = 12.0
PARTS = ("footprint", "wakes", "at_once", "many", "night")


def ask(server: ServerProcess, model: str = "fashion") -> tuple[int, float, str]:
    """Ask a model; return the status, the seconds, and the reason of a refusal."""
    url = f"{server.url}/v2/models/{model}/infer"
    asked = urllib.request.Request(url, SHIRT, {"Content-Type": "application/json"})
    begun_s = time.monotonic()
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            answer.read()
            status, reason = answer.status, ""
    except urllib.error.HTTPError as error:
        status, reason = error.code, json.loads(error.read())["error"]
    return status, time.monotonic() - begun_s, reason


def slept(server: ServerProcess, model: str = "fashion") -> dict[str, Any]:
    """Return what the state says of a model's sleep."""
    found: dict[str, Any] = server.get("/v2/clover/state")["totals"]["models"][model]
    known: dict[str, Any] = found.get("sleep", {"state": ""})  # not known in the first second
    return known


def wakes_of(server: ServerProcess, models: list[str]) -> int:
    """Return how often models were woken together."""
    return sum(slept(server, model).get("wakes", 0) for model in models)


def await_state(server: ServerProcess, state: str, model: str = "fashion") -> None:
    """Wait until a model is loaded, or asleep."""
    end_s = time.monotonic() + 60.0
    while slept(server, model)["state"] != state:
        if time.monotonic() > end_s:
            raise RuntimeError(f"{model} is not {state} after a minute")
        time.sleep(0.02)


def idle(server: ServerProcess, seconds: float) -> tuple[float, float, int]:
    """Return MB of PSS, CPU milliseconds a second, and processes, of a server that nobody asks."""
    time.sleep(20.0)  # plans that the requests before gave rise to are made
    pids = tree(server.process.pid)
    before = cpu_seconds(pids)
    time.sleep(seconds)
    return pss_bytes(pids) / 1e6, 1e3 * (cpu_seconds(pids) - before) / seconds, len(pids)


def footprint(folder: Path, idle_s: float) -> list[tuple[str, float, float, int]]:
    """Measure a server whose family is awake, asleep, and gone."""
    rows = []
    with served(["fashion", "--unload-after-s", "3600"], log=folder / "log") as server:
        for _ in range(200):
            ask(server)
        rows.append(("awake", *idle(server, idle_s)))
    with served(["fashion", "--unload-after-s", "1"], log=folder / "log") as server:
        for _ in range(200):
            ask(server)
        await_state(server, "asleep")
        rows.append(("asleep", *idle(server, idle_s)))
        server.post("/v2/repository/models/fashion/unload", {})
        rows.append(("no family", *idle(server, idle_s)))
    return rows


def wakes(folder: Path, count: int) -> tuple[list[float], Counter[int]]:
    """Return the seconds of requests to a sleeping model, one after the other, and their statuses."""
    times, codes = [], Counter[int]()
    with served(["fashion", "--unload-after-s", "0.1"], log=folder / "log") as server:
        for _ in range(count):
            await_state(server, "asleep")
            status, seconds, _ = ask(server)
            times.append(seconds)
            codes[status] += 1
        assert slept(server)["wakes"] >= count
    return times, codes


async def _together(server: ServerProcess, count: int) -> Counter[int]:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v2/models/fashion/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(SHIRT)}\r\n"
    message = (head + "Content-Type: application/json\r\nConnection: close\r\n\r\n").encode() + SHIRT
    links = [await asyncio.open_connection(host, int(port)) for _ in range(count)]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(message)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])

    return Counter(await asyncio.gather(*(one(*link) for link in links)))


def at_once(folder: Path, count: int = 1000) -> tuple[Counter[int], float, int]:
    """Return the statuses of requests that come together to a sleeping model, the seconds until all are answered, and
    how often it was woken."""
    with served(["fashion", "--unload-after-s", "1"], log=folder / "log") as server:
        await_state(server, "asleep")
        begun_s = time.monotonic()
        codes = asyncio.run(_together(server, count))
        return codes, time.monotonic() - begun_s, slept(server)["wakes"]


def many(folder: Path, minutes: float, rate: float, *, fit: bool) -> dict[str, Any]:
    """Ask twenty copies of a family, of which three fit (`fit`) or all are loaded."""
    names = [f"fashion{number:02d}" for number in range(COPIES)]
    config = folder / ("many.toml" if fit else "all.toml")
    limit = one_family_bytes(folder) * FIT if fit else 0
    entries = "".join(
        f'[[families]]\nfamily = "fashion"\nname = "{name}"\nunload_after_s = {3600 if fit else 0}\n' for name in names
    )
    config.write_text(f"[workers]\ntotal_bytes = {limit}\n{entries}")
    weights = [1.0 / rank for rank in range(1, COPIES + 1)]
    order, draw = random.Random(1).sample(names, COPIES), random.Random(2)
    codes: Counter[int] = Counter()
    times: list[float] = []
    reasons: Counter[str] = Counter()
    most_bytes, wakes_before = 0, 0

    async def run(server: ServerProcess) -> None:
        nonlocal most_bytes

        async def one(name: str) -> None:
            status, seconds, reason = await asyncio.to_thread(ask, server, name)
            codes[status] += 1
            if status == 200:
                times.append(seconds)
            else:
                reasons["no memory" if "leave it memory" in reason else reason] += 1

        async def watch() -> None:
            nonlocal most_bytes
            while True:
                workers = [pid for pid in tree(server.process.pid)[1:] if _is_worker(pid)]
                most_bytes = max(most_bytes, await asyncio.to_thread(pss_bytes, workers))
                await asyncio.sleep(0.25)

        watching = asyncio.ensure_future(watch())
        tasks = []
        end_s = time.monotonic() + 60.0 * minutes
        while time.monotonic() < end_s:
            tasks.append(asyncio.ensure_future(one(draw.choices(order, weights)[0])))
            await asyncio.sleep(draw.expovariate(rate))
        await asyncio.gather(*tasks)
        watching.cancel()

    with served(["--config", str(config)], log=folder / "log", start_s=600.0) as server:
        wakes_before = wakes_of(server, names)
        before_s = cpu_seconds(tree(server.process.pid))
        asyncio.run(run(server))
        return {
            "codes": dict(codes),
            "reasons": dict(reasons),
            "p50_ms": 1e3 * statistics.median(times),
            "p99_ms": 1e3 * quantile(times, 0.99),
            "most_mb": most_bytes / 1e6,
            "limit_mb": limit / 1e6,
            "loads_an_hour": (wakes_of(server, names) - wakes_before) * 60.0 / minutes,
            "cpu_s": cpu_seconds(tree(server.process.pid)) - before_s,
        }


def _is_worker(pid: int) -> bool:
    """Return whether a process of the server is a worker of a family."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("clover:")
    except OSError:
        return False


def one_family_bytes(folder: Path) -> int:
    """Return what the workers of one family held when they were measured, and a fifth more."""
    with served(["fashion", "--unload-after-s", "1"], log=folder / "log") as server:
        await_state(server, "asleep")
        return int(1.2 * slept(server)["memory_bytes"])


def night(folder: Path, device: str) -> dict[str, Any]:
    """Return the joules of a night with a request an hour, awake and asleep (modelled)."""
    chosen = ["fashion", "--unload-after-s", "1", "--device", device]
    with served(chosen, log=folder / "log", start_s=600.0) as server:
        for _ in range(3):
            await_state(server, "asleep")
            ask(server)
        await_state(server, "asleep")
        found = slept(server)
    waking_j = found["waking_j"] / found["wakes"]
    awake_j = 3600.0 * NIGHT_H * found["spares_w"]
    asleep_j = NIGHT_H * (found["wake_s"] + 600.0) * found["spares_w"]
    return {
        "spares_w": found["spares_w"],
        "waking_j": waking_j,
        "awake_j": awake_j,
        "asleep_j": asleep_j,
        "wakes_j": NIGHT_H * waking_j,
        "break_even_s": waking_j / found["spares_w"] if found["spares_w"] else float("inf"),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--wakes", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "footprint" in options.parts:
            rows = footprint(folder, options.idle_s)
            show("a server of fashion that nobody asks", ("state", "PSS, MB", "CPU, ms a second", "processes"), rows)
            document["footprint"] = rows
        if "wakes" in options.parts:
            times, codes = wakes(folder, options.wakes)
            row = [len(times), *(1e3 * quantile(times, q) for q in (0.5, 0.99, 1.0)), dict(codes)]
            show("the first answer of a sleeping model", ("wakes", "p50, ms", "p99, ms", "longest, ms", "codes"), [row])
            document["wakes"] = {"seconds": times, "codes": dict(codes)}
        if "at_once" in options.parts:
            codes, seconds, woken = at_once(folder)
            show("1,000 requests at once", ("codes", "seconds", "wakes"), [(dict(codes), seconds, woken)])
            document["at_once"] = {"codes": dict(codes), "seconds": seconds, "wakes": woken}
        if "many" in options.parts:
            document["many"] = {
                "three fit": many(folder, options.minutes, options.rate, fit=True),
                "all loaded": many(folder, options.minutes / 5.0, options.rate, fit=False),
            }
            keys = list(document["many"]["three fit"])
            show(
                f"{COPIES} models, {options.rate:g} requests a second",
                ("", *document["many"]),
                [(key, *(found[key] for found in document["many"].values())) for key in keys],
            )
        if "night" in options.parts:
            document["night"] = {device: night(folder, device) for device in ("cpu", "emulated:a100-40gb:1")}
            keys = list(document["night"]["cpu"])
            show(
                f"{NIGHT_H:g} hours, a request an hour (modelled)",
                ("", *document["night"]),
                [(key, *(found[key] for found in document["night"].values())) for key in keys],
            )
    write_json(options.json, document)


if __name__ == "__main__":
    main()
