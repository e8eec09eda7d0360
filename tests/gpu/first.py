"""The first minutes on a GPU: what Clover assumes of one, held against the one that is here.

    python -m tests.gpu.first [BLOCK ...] [--device nvidia:0] [--folder build/first] [--minutes 25]
    python -m tests.gpu.first --table [--folder build/first]

Needs no network: a torch with CUDA, Clover built in place, and its few small wheels.  Each block is a process of its
own, takes at most eight minutes, and adds lines of JSON to `figures.jsonl` in the folder as it goes; the next run goes
on with the blocks that are not done.  One profile of `fashion`, of two variants, is kept there for all.  A block that
fails or runs out of time leaves what it found, and the others follow.  At the end comes one table: each assumption,
where it comes from, and what was seen.  MIG mode is never changed, nor are instances of others.

With `--device emulated:NAME` the same runs on an emulated board, with torch.cuda played by the CPU: that shows that the
script works, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clover import backends, devices, families
from clover.backends.artifacts import CompileOrder
from clover.backends.environment import child_environment
from clover.config import WorkersConfig
from clover.devices.mig import MigDevice
from clover.errors import CloverError
from clover.runtime.workers.pool import Pool

ROOT = Path(__file__).parents[2]
MOST_S = 480.0


class Run:
    """One block at work.  `emulated`: it is the script that is tried, and everything is short."""

    def __init__(self, block: str, device: str, folder: Path) -> None:
        self.block, self.device, self.folder = block, device, folder
        self.emulated = device.startswith("emulated")
        self._file = (folder / "figures.jsonl").open("a", encoding="utf-8")
        self.starts: list[Any] = []

    def note(self, **figures: Any) -> None:
        """Add figures to the file, at once."""
        self._file.write(json.dumps({"block": self.block, **figures}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(f"  {self.block}: {figures}", flush=True)

    def short(self, value: float, instead: float) -> float:
        """Return `value`, or `instead` on an emulated board."""
        return instead if self.emulated else value

    def act(self, do: str, visible: str, **asked: Any) -> subprocess.Popen[str]:
        """Begin an action of `tests.gpu.on_gpu` in a process that sees `visible` alone."""
        played = {"CLOVER_PLAYED_CUDA": os.environ.get("CLOVER_PLAYED_CUDA", "")} if self.emulated else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.on_gpu"],
            cwd=ROOT,
            env=child_environment() | played | {"CUDA_VISIBLE_DEVICES": visible},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps({"do": do, "visible": visible, **asked}))
        return process

    def answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Return what an action says; it has the block's time for it."""
        assert process.stdout is not None
        with process.stdout:
            lines = process.stdout.read().splitlines()
        if process.wait() or not lines:
            raise RuntimeError(f"an action ended with {process.returncode}")
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    @contextlib.contextmanager
    def board(self) -> Iterator[MigDevice]:
        """The GPU, opened as a server opens it."""
        found = devices.build(WorkersConfig(device=self.device), self.folder / "cache")
        try:
            device = next(iter(found.values()))
            assert isinstance(device, MigDevice)
            yield device
        finally:
            devices.close(found)

    @contextlib.contextmanager
    def slice(self) -> Iterator[tuple[MigDevice, str, backends.Target]]:
        """The whole GPU, or an instance of its smallest profile, made for the block; what a process sees of it."""
        with self.board() as device:
            places = [place for layout in device.shape().layouts for place in layout]
            place = min(places, key=lambda one: (one.slices, one.start))
            ours = place not in device.instances()
            if ours:
                asyncio.run(device.create(place))
            try:
                visible = device.visible(place)
                yield device, visible, backends.target_of(device, place.profile, visible)
            finally:
                if ours:
                    asyncio.run(device.destroy(place))


# --- NVML -------------------------------------------------------------------------------------------------------------


class Nvml:
    """What the driver says of the GPU `uuid`; a refusal is an answer too."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Return the answer of nvmlDeviceGet`what`, or the error in words."""
        try:
            found = getattr(self._nvml, f"nvmlDeviceGet{what}")(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            return str(error)
        return found if isinstance(found, (int, str, list)) else str(found)

    def watts(self) -> float:
        """Return the power now; NaN if the driver does not say."""
        found = self.ask("PowerUsage")
        return found / 1e3 if isinstance(found, int) else float("nan")

    def joules(self) -> float:
        """Return the energy counter; NaN if there is none."""
        found = self.ask("TotalEnergyConsumption")
        return found / 1e3 if isinstance(found, int) else float("nan")

    def over(self, seconds: float) -> dict[str, float]:
        """Return watts over so many seconds: median and mean of the readings, and by the counter."""
        begin_s, begin_j, readings = time.monotonic(), self.joules(), []
        while time.monotonic() < begin_s + seconds:
            readings.append(self.watts())
            time.sleep(0.02)
        counted = (self.joules() - begin_j) / (time.monotonic() - begin_s)
        return {"median_w": statistics.median(readings), "mean_w": statistics.fmean(readings), "counter_w": counted}

    def ticks(self, seconds: float) -> list[float]:
        """Return the milliseconds between changes of the energy counter."""
        found, last, end_s = [], self.joules(), time.monotonic() + seconds
        while time.monotonic() < end_s:
            now = self.joules()
            if now != last:
                found.append(time.monotonic())
                last = now
            time.sleep(0.001)
        return [(two - one) * 1e3 for one, two in itertools.pairwise(found)]


# --- blocks -----------------------------------------------------------------------------------------------------------


def facts(run: Run) -> None:
    """Board and ceilings: 20 s."""
    with run.board() as device:
        nvml = Nvml(device.uuid)
        asked: dict[str, tuple[int, ...]] = {
            "Name": (),
            "MigMode": (),
            "ComputeMode": (),
            "PersistenceMode": (),
            "EnforcedPowerLimit": (),
        }
        asked |= {"MaxPcieLinkGeneration": (), "CurrPcieLinkWidth": (), "ClockInfo": (1,), "MaxClockInfo": (1,)}
        run.note(**{name: nvml.ask(name, *arguments) for name, arguments in asked.items()})
        nodes = sorted(map(str, Path("/dev").glob("nvidia*")))
        run.note(layouts=len(device.shape().layouts), fixed=device.fixed, nodes=nodes)
        if ticks := nvml.ticks(run.short(5.0, 0.5)):
            run.note(tick_ms=statistics.median(ticks), tick_least_ms=min(ticks), tick_most_ms=max(ticks))
        run.note(**{f"bare_{name}": value for name, value in nvml.over(run.short(10.0, 0.3)).items()})
    with run.slice() as (_, visible, _target):
        run.note(**run.answer(run.act("copies", visible, mib=int(run.short(256, 1)))))


def starting(run: Run) -> None:
    """Context, page-locking, and two processes on the GPU at once: 40 s."""
    with run.slice() as (_, visible, _target):
        run.note(**run.answer(run.act("context", visible, seconds=0.0)))
        run.note(page_locking=run.answer(run.act("pinned", visible)))
        both = [run.act("context", visible, seconds=0.0) for _ in range(2)]
        run.note(beside_context_ms=[run.answer(process)["context_ms"] for process in both])


def serving(run: Run) -> None:
    """`fashion` of two variants: profile, swaps under load, a kill, a full memory; 3 to 8 minutes."""
    import clover

    fashion = families.load_family("fashion")
    two = tuple(fashion.variant(name) for name in ("tiny", "large"))
    spec = families.load_family(msgspec.structs.replace(fashion, variants=two, digest=""))
    settings: dict[str, Any] = {"device": run.device, "backends": ("eager",), "http": False, "carbon": "static:300"}
    settings |= {"cache_dir": str(run.folder / "cache"), "state_dir": str(run.folder / "state"), "start_s": 120.0}
    settings |= {"slo_ms": 5000.0, "accuracy_floor": 1.0, "resident": "off", "allow_capacity_loss": True}

    async def main() -> None:
        began_s = time.monotonic()
        async with clover.Server(spec, **settings) as server:
            run.note(first_answer_s=time.monotonic() - began_s, starts_to_profile=len(run.starts))
            served, control = server.engine.pick(None), server.engine.control()
            places = {item.placement for item in served.fleet.ready_assignments()}
            place = min(places, key=lambda one: one.id)
            profiles = Counter(one.profile for one in places)
            (images,), _ = families.load_evaluation(spec, "held_out")
            ms: list[tuple[float, float]] = []
            failed: list[str] = []
            ended = False

            async def client() -> None:
                while not ended:
                    start_s = time.monotonic()
                    try:
                        await server.ainfer({"image": images[:4]}, timeout_ms=20_000)
                        ms.append((start_s, (time.monotonic() - start_s) * 1e3))
                    except CloverError as error:
                        failed.append(f"{type(error).__name__}: {error}"[:200])
                        await asyncio.sleep(0.05)

            async def swap(variant: str) -> float:
                start_s = time.monotonic()
                pinned = {f"{variant}@{profile}": count for profile, count in profiles.items()}
                await control.command("pin", {"configuration": pinned, "force": True}, "tests.gpu.first")
                return time.monotonic() - start_s

            clients = [asyncio.ensure_future(client()) for _ in range(4)]
            before_s = time.monotonic()
            await asyncio.sleep(run.short(5.0, 0.5))
            steady = [took for at_s, took in ms if at_s >= before_s]
            swaps = [await swap(name) for _ in range(int(run.short(5, 1))) for name in ("tiny", "large")]
            during = [took for at_s, took in ms if at_s >= before_s][len(steady) :]
            run.note(swaps=len(swaps), swap_s=statistics.median(swaps), swap_most_s=max(swaps), failed=len(failed))
            for name, sample in (("p99_ms", steady), ("p99_swapping_ms", during)):
                if sample:
                    run.note(**{name: float(np.percentile(sample, 99)), "of": len(sample)})
            run.note(why_failed=sorted(set(failed))[:5])
            parts = ("fork_ms", "load_ms", "warm_ms", "ready_ms", "context_bytes")
            run.note(workers=[{name: getattr(worker, name) for name in parts} for worker in run.starts[-4:]])
            (worker,) = [one for one in served.fleet.describe() if one["routed"]][:1]
            failed.clear()
            killed_s = time.monotonic()
            os.kill(worker["pid"], signal.SIGKILL)
            while not any(at_s > killed_s + 0.01 for at_s, _ in ms):
                await asyncio.sleep(0.01)
            run.note(killed_answer_s=time.monotonic() - killed_s, failed_by_kill=len(failed))
            await asyncio.sleep(run.short(5.0, 1.0))
            filling = run.act("fill", server.engine.devices[place.device].visible(place), leave=1 << 30, seconds=60.0)
            await asyncio.to_thread(filling.stdout.readline)  # type: ignore[union-attr]
            try:
                failed.clear()
                full = ""
                try:
                    await swap("tiny")
                except CloverError as error:
                    full = str(error)[:300]
                run.note(swap_in_full_memory=full or "done", failed_in_full_memory=len(failed))
            finally:
                filling.kill()
                filling.wait()
            ended = True
            await asyncio.gather(*clients)
            run.note(sent=len(ms), poisoned=served.traffic.lost_workers)

    asyncio.run(main())


def energy(run: Run) -> None:
    """Watts of a context and by duty, counter against power: 90 s."""
    seconds = run.short(10.0, 0.3)
    with run.slice() as (device, visible, _target):
        nvml = Nvml(device.uuid)
        bare = nvml.over(seconds)["median_w"]
        holding = run.act("context", visible, seconds=120.0)
        holding.stdout.readline()  # type: ignore[union-attr]
        time.sleep(run.short(3.0, 0.0))
        resident = nvml.over(seconds)["median_w"]
        run.note(bare_w=bare, resident_w=resident, context_w=resident - bare)
        points = []
        for duty in (0.1, 0.3, 0.6, 1.0, 0.1):
            size, lasts = int(run.short(4096, 64)), seconds + run.short(4.0, 0.1)
            burning = run.act("burn", visible, seconds=lasts, duty=duty, size=size)
            time.sleep(run.short(3.0, 0.0))
            found = nvml.over(seconds - run.short(1.0, 0.1))
            points.append((duty, found["counter_w"], found["mean_w"]))
            run.note(duty=duty, **found, **run.answer(burning))
        holding.kill()
        holding.wait()
    line = np.polyfit([duty for duty, *_ in points[:4]], [watts for _, watts, _ in points[:4]], 1)
    off = [abs(float(np.polyval(line, duty)) - watts) for duty, watts, _ in points[:4]]
    reach = max(abs(points[3][1] - points[0][1]), 1e-9)
    run.note(busy_w=float(line[0]), line_error=max(off) / reach, drift_w=points[4][1] - points[0][1])
    run.note(counter_error=max(abs(one / two - 1.0) for _, one, two in points))


def speed(run: Run) -> None:
    """Microseconds of a batch of three networks, bare and by Clover's layers: 4 minutes."""
    from tests.gpu import networks

    sizes = [1] if run.emulated else [1, 8, 32]
    with run.slice() as (_, visible, target):
        for name in networks.NETWORKS if not run.emulated else ("efficientnet_b0",):
            spec = networks.family(name, max_batch=sizes[-1])
            order = CompileOrder(family=spec, variant=name, backend="eager-fp16", folder="", threads=1, target=target)
            asked = {"order": msgspec.to_builtins(order), "sizes": sizes, "rounds": int(run.short(200, 2))}
            shown = run.answer(run.act("hot_path", visible, backends=["eager", "eager-fp16"], **asked))
            run.note(network=name, us=shown)
            run.note(network=name, us=run.answer(run.act("overlapped", visible, **asked)))
            bare, whole = (shown[f"eager-fp16, {what}, {sizes[-1]} rows"] for what in ("bare graph", "replayed"))
            run.note(**{f"{name}_share": bare / whole})


def mig(run: Run) -> None:
    """Instances made and removed, and one slice busy against all: 3 minutes, where this user may."""
    with run.board() as device:
        if not device.mig or device.fixed or device.instances():
            run.note(skipped=device.fixed or ("MIG is off" if not device.mig else "instances stand already"))
            return
        finest = max(device.shape().layouts, key=len)
        times: dict[str, list[float]] = {"make_s": [], "remove_s": []}

        async def change(what: str) -> None:
            began_s = time.monotonic()
            for place in finest:
                await (device.create(place) if what == "make_s" else device.destroy(place))
            times[what].append(time.monotonic() - began_s)

        nvml = Nvml(device.uuid)
        for number in range(int(run.short(10, 2))):
            asyncio.run(change("make_s"))
            if not number:
                visible = [device.visible(place) for place in finest]
                for count in (1, len(finest)):
                    seconds, size = run.short(10.0, 0.3), int(run.short(4096, 64))
                    busy = [run.act("burn", one, seconds=seconds + 4.0, duty=1.0, size=size) for one in visible[:count]]
                    time.sleep(run.short(3.0, 0.0))
                    found = nvml.over(seconds)
                    rates = [run.answer(process)["products"] / (seconds + 4.0) for process in busy]
                    run.note(busy_slices=count, products_per_s=statistics.fmean(rates), **found)
            asyncio.run(change("remove_s"))
        run.note(**{f"layout_{name}": statistics.median(values) for name, values in times.items()}, of=len(finest))


BLOCKS = {block.__name__: block for block in (facts, starting, serving, energy, speed, mig)}
"""In this order: the first ten minutes are worth most."""

# --- what it says -----------------------------------------------------------------------------------------------------

ASSUMED: tuple[tuple[str, str, float, float, str], ...] = (
    ("the energy counter moves about every 100 ms", "tick_ms", 20, 200, "arXiv 2312.02741"),
    ("counter and power agree within 5 %", "counter_error", 0, 0.05, "tests/gpu"),
    ("power is a line over duty, within 10 %", "line_error", 0, 0.1, "clover/profiling/joules.py"),
    ("a context draws 5 to 70 W", "context_w", 5, 70, "arXiv 2605.23918, owners' meters"),
    ("a context takes 0.2 to 0.6 s", "context_ms", 100, 700, "estimate"),
    ("a context with cuBLAS takes less than 1 GiB", "context_mib", 100, 1024, "clover/worker/memory.py"),
    ("a worker is ready within 6 s, and swapped so", "swap_s", 0, 12, "estimate"),
    ("no request fails by swaps", "failed", 0, 0, "docs/architecture.md"),
    ("no request fails by a killed worker", "failed_by_kill", 0, 0, "docs/architecture.md"),
    ("no request fails by a full memory", "failed_in_full_memory", 0, 0, "docs/architecture.md"),
    ("Clover adds less than a tenth to ResNet-50", "resnet50_share", 0.9, 1.01, "estimate"),
    ("Clover adds less than a tenth to EfficientNet-B0", "efficientnet_b0_share", 0.9, 1.01, "estimate"),
    ("Clover adds less than a tenth to BERT-base", "bert_base_share", 0.9, 1.01, "estimate"),
    ("the finest layout is made in 0.05 to 0.25 s", "layout_make_s", 0.03, 0.25, "spcl/gpuless-thesis, n300.out"),
    ("and removed as fast", "layout_remove_s", 0.03, 0.25, "spcl/gpuless-thesis, n300.out"),
)
"""What is assumed, the figure that shows it, its bounds, and where the assumption comes from."""


def table(lines: list[dict[str, Any]]) -> str:
    """Return the assumptions with what was seen, and the blocks."""
    seen = {key: value for line in lines for key, value in line.items()}
    emulated = str(seen.get("device", "")).startswith("emulated")
    shown = ["| assumption | from | seen | |", "|---|---|---|---|"]
    for text, key, least, most, source in ASSUMED:
        value = seen.get(key)
        verdict = "not seen" if value is None else "confirmed" if least <= value <= most else "BROKEN"
        verdict = "emulated" if emulated and value is not None else verdict
        shown.append(f"| {text} | {source} | {'' if value is None else f'{value:.4g}'} | {verdict} |")
    shown += ["", "| block | seconds | worker starts | ended |", "|---|---|---|---|"]
    ends = [line for line in lines if "seconds_taken" in line]
    shown += [f"| {one['block']} | {one['seconds_taken']:.0f} | {one['starts']} | {one['ended']} |" for one in ends]
    return "\n".join(shown)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines so far; what a killed block wrote in part is left out."""
    found = []
    for line in (folder / "figures.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def one(name: str, device: str, folder: Path) -> None:
    """Run one block in this process, and say how it ended."""
    run, began_s = Run(name, device, folder), time.monotonic()
    spawn: Callable[..., Any] = Pool.spawn

    async def counted(*args: Any, **named: Any) -> Any:
        worker = await spawn(*args, **named)
        run.starts.append(worker)
        return worker

    Pool.spawn = counted  # type: ignore[method-assign]
    ended = "done"
    try:
        BLOCKS[name](run)
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        run.note(device=device, seconds_taken=time.monotonic() - began_s, starts=len(run.starts), ended=ended)


def main() -> int:
    """Run the blocks that are not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=f"of {', '.join(BLOCKS)}; by default all")
    parser.add_argument("--device", default="nvidia:0")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "first")
    parser.add_argument("--minutes", type=float, default=25.0, help="no block begins later")
    parser.add_argument("--table", action="store_true", help="only print what was found so far")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.blocks) - set(BLOCKS):
        parser.error(f"no block {', '.join(sorted(unknown))}")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.jsonl").touch()
    if given.here:
        one(given.blocks[0], given.device, folder)
        return 0
    done = {line["block"] for line in read(folder) if line.get("ended") == "done"}
    end_s, failed = time.monotonic() + given.minutes * 60.0, 0
    for name in given.blocks or [name for name in BLOCKS if name not in done] if not given.table else ():
        left_s = min(MOST_S, end_s - time.monotonic())
        if left_s <= 0:
            print(f"{name}: no time is left")
            continue
        played = {"CLOVER_PLAYED_CUDA": "NVIDIA A100-SXM4-40GB"} if given.device.startswith("emulated") else {}
        words = [name, "--here", "--device", given.device, "--folder", str(folder)]
        words = [sys.executable, "-m", "tests.gpu.first", *words]
        block = subprocess.Popen(words, cwd=ROOT, env=os.environ | played, start_new_session=True)
        try:
            failed += block.wait(left_s) != 0
        except subprocess.TimeoutExpired:
            failed += 1
            print(f"{name}: not done after {left_s:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(block.pid, signal.SIGKILL)  # and what it left behind
            block.wait()
    print(table(read(folder)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
