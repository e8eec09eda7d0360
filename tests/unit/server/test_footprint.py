"""What hardware a server reserves: cores of a machine, GPUs, and the machine that they stand in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from clover.accounting import Account, Span, Spans, WorkerMeter
from clover.config import EmbodiedConfig, ServerConfig
from clover.devices.cpu import CpuDevice
from clover.devices.mig import MigDevice
from clover.server.footprint import Footprint, hardware_of
from clover.types import Reading


def gpu(product: str, *, emulated: bool = False, slices: int = 7) -> Any:
    made = MigDevice.__new__(MigDevice)
    made.product, made.emulated, made.others = product, emulated, 7 - slices
    made.shape = lambda: SimpleNamespace(slices=slices)  # type: ignore[method-assign, assignment, return-value]
    return made


def test_a_box_is_charged_by_the_cores_that_the_server_keeps() -> None:
    (box,) = hardware_of(EmbodiedConfig(), {"cpu0": CpuDevice.from_cores((0, 1, 2, 3))}, cores=16)
    assert (box.reserved, box.total, box.for_workers) == (4.0, 16, 3.0)
    assert box.kg == pytest.approx(16.8 * 16)
    assert box.known == "cited default"
    assert (box.low_kg, box.high_kg) == (pytest.approx(9.8 * 16), pytest.approx(44.6 * 16))


def test_what_is_configured_wins_and_says_so() -> None:
    config = EmbodiedConfig(machine_kg=1200.0, reserved=0.5)
    (box,) = hardware_of(config, {"cpu0": CpuDevice.from_cores((0, 1))}, cores=8)
    assert (box.kg, box.known, box.reserved, box.for_workers) == (1200.0, "configured", 4.0, 4.0)
    found = hardware_of(EmbodiedConfig(gpu_kg=200.0), {"gpu0": gpu("NVIDIA H200")}, cores=8)
    assert (found[0].kg, found[0].known) == (200.0, "configured")


def test_gpus_are_charged_whole_beside_the_cores_of_their_machine() -> None:
    found = hardware_of(EmbodiedConfig(), {"gpu0": gpu("NVIDIA H100 80GB HBM3"), "gpu1": gpu("NVIDIA H200")}, cores=64)
    assert [(item.device, item.kg, item.known) for item in found[:2]] == [
        ("gpu0", 164.0, "cited default"),
        ("gpu1", None, "unknown"),
    ]
    assert found[2].device == "host"
    assert found[2].for_workers == 0.0
    assert 0.0 < found[2].reserved <= found[2].total == 64


def test_fixed_instances_are_charged_their_part_of_the_gpu() -> None:
    found, _ = hardware_of(EmbodiedConfig(), {"gpu0": gpu("NVIDIA H100 80GB HBM3", slices=2)}, cores=64)
    assert (found.kg, found.reserved, found.total, found.for_workers) == (164.0, 2, 7, 2)


def test_emulated_gpus_are_said_to_be_emulated() -> None:
    devices = {"gpu0": gpu("NVIDIA A100-SXM4-40GB", emulated=True)}
    found = hardware_of(EmbodiedConfig(gpu_kg=1.0), devices, cores=4)
    assert [(item.device, item.known) for item in found] == [("gpu0", "emulated"), ("host", "cited default")]


def test_time_reserved_is_charged_and_rows_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.server.footprint.time", SimpleNamespace(monotonic_ns=lambda: 0))
    config = ServerConfig(embodied=EmbodiedConfig(machine_kg=1000.0, reserved=1.0, life_years=1.0))
    account = Account(pue=1.5)
    account.add_device("cpu0", 2)
    account.attach(WorkerMeter(family="m", variant="small", device="cpu0", placement="p", slices=1))
    footprint = Footprint(config, {"cpu0": CpuDevice.from_cores((0, 1))}, account)
    for method, hour in (("synthetic", 1), ("configured", 2)):
        reading = Reading(g_per_kwh=300.0, at_s=0.0, provider="p", method=method)  # type: ignore[arg-type]
        # Three of the ten rows went on to the variant that answered them.
        spans = Spans(families={"m": Span(rows={"small": 10, "large": 3}, gone_on=3)})
        footprint.window(hour * 3600 * 1_000_000_000, reading, spans)
    report = footprint.report()
    whole = 2 / 8760 * 1e6
    assert report.embodied["cpu0"].grams == pytest.approx(whole)
    workers = report.boundaries["workers"]
    assert workers.rows == report.models["m"].rows == 20
    assert workers.embodied is not None
    assert workers.embodied.grams == pytest.approx(whole / 2)
    assert report.methods.intensity == "configured + synthetic"
    assert report.methods.embodied == "configured"
    assert report.pue == 1.5
