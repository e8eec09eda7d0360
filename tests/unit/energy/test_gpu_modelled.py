"""The model of a GPU that shows neither its energy nor its power."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from clover import energy
from clover.config import EnergyConfig
from clover.energy import ModelledGpuMeter, OurWork
from clover.energy.gpu_modelled import gpu_power
from clover.errors import DeviceError
from clover.profiling import joules
from clover.profiling.driver import Cell
from clover.profiling.joules import EnergyMeters
from clover.types import Placement

SECOND = 1_000_000_000
HIDDEN = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues")


class VirtualGpu:
    """A board that NVML says nothing of but its name and, as long as `percent` is set, how busy it is."""

    name, uuid, emulated = "gpu0", "GPU-1", False

    def __init__(self) -> None:
        self.now_ns = 7 * SECOND
        self.percent: int | None = 0
        self.lost = False
        self.product = "NVIDIA A10"

    async def call(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        return function(*arguments)

    def utilisation(self, _: object) -> Any:
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if self.percent is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=self.percent)

    async def meter(self, work: OurWork | None = None, **config: Any) -> ModelledGpuMeter:
        made = await energy.build_gpu(self, self, EnergyConfig(**config), work=work, clock=lambda: self.now_ns)
        assert isinstance(made, ModelledGpuMeter)
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> VirtualGpu:
    def hidden(*_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    made = VirtualGpu()
    for name in HIDDEN:
        monkeypatch.setattr(pynvml, name, hidden)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda _: made.product)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", made.utilisation)
    return made


def test_watts_lie_between_idle_and_the_data_sheet_by_utilisation(
    gpu: VirtualGpu, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        meter = await gpu.meter()
        assert (meter.idle_w, meter.method) == (pytest.approx(0.12 * 150.0), "modelled")
        assert "18 W idle to 150 W busy (the data sheet of NVIDIA A10), -50% to +50%" in meter.why
        for percent, watts in ((0, 18.0), (50, 84.0), (100, 150.0), (130, 150.0)):
            gpu.percent = percent
            gpu.now_ns += 2 * SECOND
            before_j = meter.sample(0).total_j
            await meter.refresh()
            sample = meter.sample(0)
            assert sample.total_j - before_j == pytest.approx(2 * watts)
        assert (sample.at_ns, sample.uncertainty, sample.active_uncertainty) == (gpu.now_ns, (-0.5, 0.5), (-0.5, 0.5))

    asyncio.run(scene())
    assert "gpu0: its energy is modelled from here on: gpu0 shows neither its energy" in caplog.text


def test_without_utilisation_it_is_how_busy_our_workers_were(gpu: VirtualGpu) -> None:
    gpu.percent, busy_ns = None, 0

    async def scene() -> None:
        nonlocal busy_ns
        held = 1.0
        work = OurWork(
            busy_ns=lambda: busy_ns,
            workers=lambda: frozenset((2, 4)),
            owns=lambda pid: True,
            held_part=lambda: held,
        )
        meter = await gpu.meter(work, gpu_idle_w=10.0)
        gpu.now_ns += 4 * SECOND
        busy_ns += 2 * SECOND  # of two workers, a quarter of the time
        await meter.refresh()
        assert meter.sample(0).total_j == pytest.approx(4 * (10.0 + 140.0 / 4))
        held = 2 / 7  # two slices of seven, busy all the time
        gpu.now_ns += 7 * SECOND
        busy_ns += 14 * SECOND
        await meter.refresh()
        assert meter.sample(0).total_j == pytest.approx(4 * (10.0 + 140.0 / 4) + 7 * 10.0 + 2 * 140.0)

    asyncio.run(scene())


def test_a_gpu_that_is_lost_is_not_modelled_on(gpu: VirtualGpu) -> None:
    async def scene() -> None:
        meter = await gpu.meter()
        gpu.now_ns += SECOND
        await meter.refresh()
        kept = meter.sample(0)
        gpu.lost = True
        gpu.now_ns += SECOND
        await meter.refresh()
        assert (meter.sample(0), meter.lost) == (kept, True)
        assert meter.why.endswith("the GPU is lost")

    asyncio.run(scene())


def test_products_are_found_by_the_longest_name() -> None:
    table = gpu_power()
    for product, watts in (
        ("NVIDIA A100-PCIE-40GB", 250.0),
        ("NVIDIA A100-SXM4-80GB", 400.0),
        ("NVIDIA A40", 300.0),
        ("NVIDIA RTX A2000 12GB", None),
        ("NVIDIA A2", 60.0),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA A40-8Q", None),
        ("GRID A100-10C", None),
        ("GRID T4-2B4", None),
        ("NVIDIA L4", 72.0),
        ("NVIDIA L40S", 350.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 450.0),
        ("Tesla T4", 70.0),
        ("Quadro FX", None),
    ):
        assert table.full_w(product) == watts


@pytest.mark.parametrize(("product", "gib"), [("NVIDIA A40-8Q", 8), ("GRID T4-2B4", 2), ("GRID A100-1-5C", 5)])
def test_a_virtual_gpu_is_modelled_by_its_memory_and_not_as_a_whole_board(
    gpu: VirtualGpu, product: str, gib: int
) -> None:
    gpu.product = product
    meter = asyncio.run(gpu.meter())
    assert f"W idle to {6 * gib} W busy (a virtual GPU of {gib} GiB, 6 W each), -70% to +150%" in meter.why
    assert meter.sample(0).active_uncertainty == (-0.7, 1.5)


def test_an_unknown_product_gets_any_gpus_watts_and_says_so(gpu: VirtualGpu) -> None:
    gpu.product = "Quadro FX"
    meter = asyncio.run(gpu.meter())
    assert "30 W idle to 250 W busy (no data sheet of 'Quadro FX': any GPU's)" in meter.why


def test_a_gpu_with_slices_of_others_is_modelled_by_what_our_workers_do(
    gpu: VirtualGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a pod NVML lists no processes, and its counter is that of all slices."""
    monkeypatch.setattr(pynvml, HIDDEN[0], lambda _: gpu.now_ns // 1000)
    monkeypatch.setattr(pynvml, HIDDEN[1], lambda _: 90_000)
    monkeypatch.setattr(VirtualGpu, "others", 6, raising=False)
    gpu.percent, busy_ns = 100, 0  # of others

    async def scene() -> None:
        nonlocal busy_ns
        work = OurWork(lambda: busy_ns, lambda: frozenset((2,)), lambda _: True, held_part=lambda: 1 / 7)
        meter = await gpu.meter(work)
        gpu.now_ns += 10 * SECOND
        busy_ns += 5 * SECOND
        await meter.refresh()
        sample = meter.sample(0)
        assert sample.total_j == pytest.approx(10 * 18.0 + 5 * 132.0 / 7)
        assert (sample.method, meter.by_work, meter.busy_w) == ("modelled", True, 132.0)
        assert "its counter is also that of 6 slices that are not this server's" in meter.why
        counted = await energy.build_gpu(gpu, gpu, EnergyConfig(gpu_meter="nvml", gpu_idle_w=50.0))
        assert (counted.method, counted.source) == ("measured", "counter")
        session: Any = SimpleNamespace(call_sync=lambda function: function())
        keys = {energy.gpu_meter_key(EnergyConfig(gpu_meter=how), gpu, session) for how in ("auto", "nvml", "modelled")}
        assert len(keys) == 3, "a profile by one is not valid for another"
        monkeypatch.setattr(VirtualGpu, "emulated", True)
        pod = await energy.build_gpu(gpu, gpu, EnergyConfig(gpu_idle_w=50.0))
        assert (pod.method, pod.source) == ("emulated", "counter"), "nothing but our own work is in it"

    asyncio.run(scene())
    assert caplog.text.count("gpu0: its energy is modelled: its counter is also that of 6 slices") == 1


def test_a_profile_in_a_pod_has_the_joules_of_our_slices_by_the_model(
    gpu: VirtualGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, HIDDEN[0], lambda _: gpu.now_ns // 1000)
    monkeypatch.setattr(pynvml, HIDDEN[1], lambda _: 90_000)
    shape = SimpleNamespace(slices=1)
    for name, value in (("others", 6), ("session", gpu), ("shape", lambda self: shape)):
        monkeypatch.setattr(VirtualGpu, name, value, raising=False)
    place = Placement(device="gpu0", profile="1g.10gb", start=0, size=1)

    async def nobody(*_: Any) -> str:
        return ""

    monkeypatch.setattr(joules, "others_on", nobody)

    async def scene() -> None:
        meters = await EnergyMeters.start(EnergyConfig(), 1, [gpu])
        assert meters.label.startswith("energy of GPUs is modelled by the time in which workers were busy")
        await meters.rest(place)
        async with meters.window((place,)) as window:
            pass
        assert window.joules(100, 0.0, 2.0) == (pytest.approx(2.0 * 132.0 / 7 / 100), "modelled")
        cell = Cell(4, [500.0, 500.0], wall_s=2.0, lead_s=0.5)
        point = window.point(cell)
        assert point is not None
        assert (point.busy_s, point.active_j) == (1.5, pytest.approx(1.5 * 132.0 / 7))
        counted = await EnergyMeters.start(EnergyConfig(gpu_meter="nvml", gpu_idle_w=50.0), 1, [gpu])
        assert counted.label.endswith("; the work of others, who have slices of gpu0, is in it")
        assert counted.window((place,)).busy_w is None

    asyncio.run(scene())


def test_the_operator_chooses(gpu: VirtualGpu) -> None:
    assert "modelled: configured" in asyncio.run(gpu.meter(gpu_meter="modelled")).why
    with pytest.raises(DeviceError, match=r'energy\.gpu_meter = "modelled"'):
        asyncio.run(gpu.meter(gpu_meter="nvml"))
