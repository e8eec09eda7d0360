"""Rows of a batch job beside live ones, on a whole server of the default family."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

import msgspec
import pytest

import clover
from clover.accounting.devices import LINES
from clover.devices.cpu import CpuDevice
from clover.families import load_family
from clover.profiles import ProfileStore
from clover.profiling import key_of
from tests.support import profiles_fixture as synthetic
from tests.support.waiting_rows import answers, as_jsonl, keep, until

ENDPOINT = "/v2/models/fashion/infer"
WAITING, LIVE = 300, 150
ROW = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784}


def row(number: int) -> dict[str, object]:
    wrong = {"inputs": []} if number == 7 else {"inputs": [ROW]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": ENDPOINT, "body": wrong}


@pytest.mark.usefixtures("forked_zygotes")
def test_waiting_rows_are_answered_beside_live_ones_which_do_not_see_them(tmp_path: Path) -> None:
    server = clover.Server(
        "fashion",
        cache_dir=str(tmp_path),
        state_dir=str(tmp_path / "state"),
        http=False,
        port=0,
        carbon="static:300",
        energy_meter="modelled",
        backends=("eager",),
        slo_ms=200.0,
    )
    cores = tuple(2**power for power in range(9) if 2**power <= len(os.sched_getaffinity(0)))
    profile = msgspec.structs.replace(
        synthetic.profile(cores, synthetic.FASHION),
        family="fashion",
        key=key_of(load_family("fashion"), CpuDevice(), server.config),
    )
    ProfileStore(tmp_path).put(profile)

    async def main() -> None:
        async with server as serving:
            parts = serving.engine.parts
            store, served = parts.batches, parts.families.served["fashion"]
            assert not parts.waiting.state()
            assert served.spare is None  # nothing of it is there before there is a job
            file = await keep(store, as_jsonl(map(row, range(WAITING))))
            job = await store.create("", file.id, ENDPOINT, window="24h", window_s=86_400.0)
            await until(lambda: bool(parts.waiting.state()))
            (found,) = parts.control.state()["totals"]["waiting"]
            assert (found["job"], found["carbon"]) == (job.id, "wait")

            async def ask() -> None:
                for _ in range(LIVE // 5):
                    await serving.ainfer({"image": [[[0.5] * 28] * 28]})

            await asyncio.gather(*(ask() for _ in range(5)))
            ended = asyncio.get_running_loop().time() + 30.0
            while (shown := await store.job(None, job.id)).status != "completed":
                assert asyncio.get_running_loop().time() < ended, parts.waiting.state()
                await asyncio.sleep(0.05)
            assert (shown.completed, shown.failed) == (WAITING - 1, 1)
            lines = await answers(store, job.output_file)
            (error,) = await answers(store, job.error_file)
            assert error["custom_id"] == "row-7"
            assert error["response"]["status_code"] == 400
            assert sorted(line["custom_id"] for line in lines) == sorted(
                f"row-{number}" for number in range(WAITING) if number != 7
            )
            assert all(line["response"]["body"]["outputs"][0]["shape"] == [1, 10] for line in lines)
            assert {line["clover"]["receipt"]["variant"] for line in lines} == {"xlarge"}

            assert parts.totals.report()["models"]["fashion"]["waited"]["rows"] == WAITING - 1
            assert sum(served.traffic.rows) == LIVE
            assert served.traffic.codes == {200: LIVE}
            assert served.traffic.latency.count == LIVE
            assert served.router.state.table.free.free == len(served.router.state.table.state)
            await parts.windows.count()
            await parts.windows.count()
            account = parts.account
            totals = account.totals("fashion")
            assert totals["waiting_j"] > 0.0
            assert totals["energy_j"] == pytest.approx(
                sum(totals[name] for name in ("receipts_j", "idle_no_request_j", "control_j", "unbilled_j"))
            )
            for device in account.devices().values():
                assert sum(float(device[f"{line}_j"]) for line in LINES) == pytest.approx(float(device["measured_j"]))
                assert sum(float(device[f"{line}_g"]) for line in LINES) == pytest.approx(float(device["total_g"]))
            used = sum(usage.active_j for usage in account.usage.values())
            assert used == pytest.approx(totals["active_j"] + totals["waiting_j"])
            assert shown.energy_j == pytest.approx(
                served.spare.energy_j if served.spare is not None else math.nan
            )

    asyncio.run(asyncio.wait_for(main(), 60.0))
