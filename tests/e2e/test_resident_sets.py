"""Real workers that hold several variants: each answers on its lane, and one that cannot be held harms no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.errors import WorkerError
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.handle import WorkerProcess
from clover.types import FamilySpec
from clover.worker.frames import Resident
from tests.support.worker_pools import Client, client_of, order, run, started

pytestmark = pytest.mark.usefixtures("forked_zygotes")

TOML = """\
name = "rungs"
max_batch = 4

[[inputs]]
name = "x"
datatype = "FP32"
shape = [2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [2]
"""

VARIANT = """
[[variants]]
name = "{name}"
kind = "{kind}"
loader = "model:{loader}"
parameters = {{ factor = {factor} }}
accuracy = {{ value = 90.0, metric = "top1", source = "test" }}
"""

MODEL = """\
import numpy as np
import torch

class Scale(torch.nn.Module):
    def __init__(self, factor, floats=0, wide=False):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))
        self.register_buffer("ballast", torch.ones(floats))
        self.wide = wide

    def forward(self, x):
        y = x * self.factor
        return torch.cat([y, y], dim=1) if self.wide else y

def load(variant, folder):
    return Scale(variant.parameters["factor"])

def load_large(variant, folder):
    return Scale(variant.parameters["factor"], floats=48 << 18)

def load_wide(variant, folder):
    return Scale(variant.parameters["factor"], wide=True)

def load_none(variant, folder):
    raise RuntimeError("no such weights")

def load_quitter(variant, folder):
    raise SystemExit("not today")

def load_picky(variant, folder):
    def answer(inputs):
        if (inputs[0] == 13).any():
            raise ValueError("thirteen")
        return [(inputs[0] * np.float32(variant.parameters["factor"])).astype(np.float32)]
    return answer
"""

VARIANTS = {
    "one": ("load", 1),
    "two": ("load", 2),
    "large": ("load_large", 3),
    "wide": ("load_wide", 4),
    "none": ("load_none", 5),
    "quitter": ("load_quitter", 6),
    "picky": ("load_picky", 7),
}
LARGE_BYTES = 48 << 20


@pytest.fixture(scope="module")
def rungs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FamilySpec, Slab]]:
    folder: Path = tmp_path_factory.mktemp("rungs")
    text = TOML
    for name, (loader, factor) in VARIANTS.items():
        kind = "python" if name == "picky" else "torch"
        text += VARIANT.format(name=name, kind=kind, loader=loader, factor=factor)
    (folder / "family.toml").write_text(text)
    (folder / "model.py").write_text(MODEL)
    spec = families.load_family(str(folder))
    slab = Slab.create(Layout(spec, 8))
    yield spec, slab
    slab.close()


def also(*names: str, threads: int = 1) -> tuple[Resident, ...]:
    return tuple(Resident(variant=name, backend="eager", threads=threads) for name in names)


def test_each_variant_answers_on_its_lane_and_those_that_cannot_be_held_are_left_out(
    rungs: tuple[FamilySpec, Slab],
) -> None:
    spec, slab = rungs

    async def answers(client: Client, worker: WorkerProcess, lane: int, value: float = 3.0) -> tuple[int, list[float]]:
        slab.input(0)[2:4] = value
        slab.output(0)[2:4] = -1.0
        status = await client.infer(worker, 2, 3, lane=lane)
        return status, slab.output(0)[2:4].ravel().tolist()

    async def main() -> None:
        async with started() as pool, client_of(pool) as client:
            names = ("none", "large", "wide", "quitter", "two", "picky")
            worker = await pool.spawn(order(spec, "one", also=also(*names, threads=2)), slab)
            assert worker.resident == {"one": 0, "large": 2, "two": 5, "picky": 6}
            assert {name: text.split(":")[0] for name, text in worker.left_out.items()} == {
                "none": "RuntimeError",
                "wide": "OutputError",
                "quitter": "SystemExit",
            }
            assert Path(f"/proc/{worker.pid}/comm").read_text() == "clover:rungs\n"
            held = {one.variant: one for one in worker.held}
            assert held.keys() == worker.resident.keys()
            assert {name: one.weights_bytes for name, one in held.items()} == {
                "one": 4,
                "large": LARGE_BYTES + 4,
                "two": 4,
                "picky": 0,
            }
            assert all(one.peak_bytes < LARGE_BYTES / 2 for one in held.values())
            assert 0 < worker.context_bytes < 200 << 20
            for lane, factor in ((0, 1), (2, 3), (5, 2), (6, 7), (5, 2), (0, 1)):
                assert await answers(client, worker, lane) == (0, [3.0 * factor] * 4)
            assert await answers(client, worker, 6, 13.0) == (1, [-1.0] * 4)  # its batch fails, and no other
            assert await answers(client, worker, 6) == (0, [21.0] * 4)
            await worker.drain_and_exit()

            small = worker.context_bytes + sum(one.peak_bytes for one in worker.held if one.variant != "large")
            limited = order(spec, "one", also=also("large", "two"), resident_bytes=small + LARGE_BYTES // 2)
            worker = await pool.spawn(limited, slab)
            assert worker.resident == {"one": 0, "two": 2}
            assert "48 MiB" in worker.left_out["large"]
            assert await answers(client, worker, 2) == (0, [6.0] * 4)
            await worker.drain_and_exit()

            late = await pool.spawn(order(spec, "one", also=also("two"), also_s=1e-6), slab)
            assert late.resident == {"one": 0}
            assert "has been loading" in late.left_out["two"]
            await late.drain_and_exit()

            with pytest.raises(WorkerError, match="no such weights"):  # of the first one, a failure is the worker's
                await pool.spawn(order(spec, "none", also=also("one")), slab)

            alone = await pool.spawn(order(spec, "two"), slab)
            assert alone.resident == {"two": 0}
            assert Path(f"/proc/{alone.pid}/comm").read_text() == "clover:two\n"
            with pytest.raises(ValueError, match="no lane 1"):
                alone.ring.submit(1, np.zeros(1, np.uint32), 1, 1)
            await alone.drain_and_exit()

    run(main())


def test_a_batch_for_a_variant_that_was_left_out_ends_the_worker(rungs: tuple[FamilySpec, Slab]) -> None:
    spec, slab = rungs

    async def main() -> None:
        async with started() as pool, client_of(pool) as client:
            deaths: list[str] = []
            worker = await pool.spawn(
                order(spec, "one", also=also("none")), slab, on_death=lambda worker, reason: deaths.append(reason)
            )
            client.submit(worker, 0, lane=1)
            assert await worker.dead(5.0)
            assert worker.ring.reap() is None
            assert deaths

    run(main())
