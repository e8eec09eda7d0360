"""GPUs in parts by MPS, over a fake driver and the emulated control daemon on the PATH."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from clover import devices
from clover.config import WorkersConfig
from clover.devices.mps import MpsDevice
from clover.devices.mps_control import MpsControl
from clover.devices.mps_emulated import MpsConnection
from clover.devices.nvml import Nvml
from clover.errors import ConfigError, DeviceError
from clover.types import Placement
from tests.support.fake_nvml import Board, FakeNvml
from tests.support.mps_program import install


def at(profile: str, start: int = 0) -> Placement:
    return Placement(device="gpu0", profile=profile, start=start, size=int(profile[0]))


class Bench:
    """A fake GPU, and devices that were opened on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cache"
        self.board = Board("GPU-74d43ed3-cdf7", mig=None)
        self.fake = FakeNvml(self.board)
        self.fake.cuda = 13010
        self._opened: list[MpsDevice] = []

    def open(self, device: str = "nvidia:0/mps", *, exclusive: bool = True) -> MpsDevice:
        config = WorkersConfig(device=device)
        found = devices.build(config, self.folder, session=Nvml(self.fake), exclusive=exclusive)["gpu0"]
        assert isinstance(found, MpsDevice)
        self._opened.append(found)
        return found

    def close(self) -> None:
        for device in self._opened:
            devices.close({"gpu0": device})
        self._opened.clear()


@pytest.fixture
def bench(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    install(short_path, monkeypatch)
    found = Bench(short_path)
    yield found
    found.close()


def chunks(device: MpsDevice) -> list[int]:
    assert device.control is not None
    table = device.control.table(device.uuid)
    return [] if table is None else [partition.chunks for partition in table.partitions]


def test_a_gpu_has_four_parts_that_stand_side_by_side(bench: Bench) -> None:
    device = bench.open()
    shape = device.shape()
    assert (shape.slices, shape.overlap, shape.one_process) == (4, False, False)
    assert shape.label.endswith("parts by MPS (static partitions)")
    sets = sorted(sorted(place.profile for place in layout) for layout in shape.layouts)
    assert ["4of4"] in sets
    assert ["1of4", "3of4"] in sets
    assert ["2of4", "2of4"] in sets
    assert ["1of4"] * 4 in sets
    assert all(sum(place.slices for place in layout) == 4 for layout in shape.layouts)
    assert device.memory_bytes(at("1of4")) * 4 == device.memory_bytes(at("4of4"))


def test_parts_are_static_partitions_that_workers_are_clients_of(bench: Bench) -> None:
    device = bench.open()
    asyncio.run(device.create(at("1of4")))
    asyncio.run(device.create(at("2of4", 2)))
    assert chunks(device) == [6, 12], "27 chunks make four parts of 6"
    assert device.visible(at("1of4")) == device.uuid, "the GPU is all that a worker may see"
    one, two = device.environment(at("1of4")), device.environment(at("2of4", 2))
    assert one["CUDA_MPS_SM_PARTITION"].startswith(f"{device.uuid}/")
    assert one["CUDA_MPS_SM_PARTITION"] != two["CUDA_MPS_SM_PARTITION"]
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in one
    assert two["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"0={device.memory_bytes(at('2of4')) >> 20}M"
    assert one["CUDA_MPS_PIPE_DIRECTORY"].startswith(str(bench.folder))
    with pytest.raises(DeviceError, match="does not stand"):
        device.environment(at("1of4", 1))
    assert [place.id for place in device.instances()] == ["gpu0:1of4@0", "gpu0:2of4@2"]
    asyncio.run(device.destroy(at("1of4")))
    assert chunks(device) == [12]
    asyncio.run(device.destroy(at("2of4", 2)))
    asyncio.run(device.create(at("4of4")))
    assert chunks(device) == [27], "the whole has what four parts leave over"
    report = device.report()
    assert report["mig"] is False
    assert report["mps"]["parts"] == "static"
    assert report["mps"]["daemon"] == "ours"


def test_a_part_in_use_is_quarantined_and_freed_later(bench: Bench) -> None:
    device = bench.open()
    device._work._back_off_s = ()
    asyncio.run(device.create(at("2of4")))
    environment = device.environment(at("2of4"))
    client = MpsConnection(environment["CUDA_MPS_PIPE_DIRECTORY"], environment)
    with pytest.raises(DeviceError, match="cannot be removed and is left out until it can"):
        asyncio.run(device.destroy(at("2of4")))
    assert all(place.start >= 2 for layout in device.shape().layouts for place in layout)
    client._socket.close()
    assert asyncio.run(device.retry_quarantined()) == (at("2of4"),)
    assert chunks(device) == []


@pytest.mark.parametrize(
    ("cuda", "capability", "why"),
    [
        (13000, (8, 0), "need a driver for CUDA 13.1, and this one is for 13.0"),
        (13020, (7, 5), "need Ampere or later, and this GPU has compute capability 7.5"),
    ],
)
def test_older_drivers_and_gpus_give_bounds(bench: Bench, cuda: int, capability: tuple[int, int], why: str) -> None:
    bench.fake.cuda, bench.board.capability = cuda, capability
    device = bench.open()
    assert device.shape().label.endswith("parts by MPS (thread percentages)")
    asyncio.run(device.create(at("1of4")))
    asyncio.run(device.create(at("3of4", 1)))
    assert device.environment(at("1of4"))["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert device.environment(at("3of4", 1))["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "75"
    assert "CUDA_MPS_SM_PARTITION" not in device.environment(at("1of4"))
    asyncio.run(device.destroy(at("1of4")))
    assert device.instances() == (at("3of4", 1),)
    about = device.report()["mps"]
    assert about["parts"] == "percentages"
    assert why in about["why"]


def test_a_daemon_that_refuses_static_partitions_gives_bounds_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLOVER_MPS_CHUNK", "0")
    with caplog.at_level(logging.WARNING, "clover.devices"):
        device = bench.open()
    assert "no static partitions of MPS" in caplog.text
    assert device.report()["mps"]["parts"] == "percentages"


def test_the_daemon_ends_with_the_device(bench: Bench) -> None:
    control = bench.open().control
    assert control is not None
    assert control.runs()
    bench.close()
    assert not control.runs()


def test_a_daemon_that_was_there_is_used_and_left_alone(bench: Bench, short_path: Path) -> None:
    theirs = MpsControl(short_path / "found", short_path / "log")
    theirs.start(bench.board.uuid, static=True)
    try:
        foreign = theirs.add(bench.board.uuid, 7)
        device = bench.open()
        about = device.report()
        assert about["mps"]["daemon"] == "found"
        assert about["foreign"] == ["gpu0:1of4@2", "gpu0:1of4@3"], "seven chunks are in the way of two parts"
        assert max(sum(place.slices for place in layout) for layout in device.shape().layouts) == 2
        asyncio.run(device.create(at("2of4")))
        bench.close()
        assert theirs.runs()
        # What a server left there is known by its record, and cleared by the next one.
        device = bench.open()
        assert device.instances() == (at("2of4"),)
        asyncio.run(device.reconcile(()))
        assert [partition.name for partition in theirs.table(bench.board.uuid).partitions] == [foreign]  # type: ignore[union-attr]
    finally:
        bench.close()
        theirs.quit()


def test_what_a_killed_server_left_is_ended_and_started_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    device = bench.open()
    asyncio.run(device.create(at("2of4")))
    assert device.control is not None
    (left,) = device.control.pipe.glob("*.pid")
    pid = int(left.read_text())
    device.control = None  # it was killed: nothing is ended
    bench.close()
    again = bench.open()
    assert "that a killed server left" in caplog.text
    assert again.control is not None
    assert int(left.read_text()) != pid
    assert again.instances() == ()
    assert chunks(again) == []


def test_a_daemon_of_ours_that_stays_in_a_fault_is_started_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    device = bench.open()
    asyncio.run(device.create(at("2of4")))
    control = device.control
    assert control is not None
    before = device.environment(at("2of4"))
    stuck = [True]
    monkeypatch.setattr(control, "faulted", lambda: stuck[0])
    real = control.start

    def start(uuid: str, *, static: bool) -> None:
        real(uuid, static=static)
        stuck[0] = False

    monkeypatch.setattr(control, "start", start)
    device.note_fault("worker 7 at gpu0:2of4@0: CUDA error 700")
    (pid,) = control.pipe.glob("*.pid")
    was = pid.read_text()
    for _ in range(20):
        assert asyncio.run(device.poll())
    assert pid.read_text() != was
    assert chunks(device) == [12], "the part was made again"
    assert device.environment(at("2of4")).keys() == before.keys()
    about = device.report()["mps"]
    assert (about["faults"], about["last_fault"]) == (1, "worker 7 at gpu0:2of4@0: CUDA error 700")


def test_a_daemon_of_ours_that_is_gone_is_started_anew(bench: Bench) -> None:
    device = bench.open()
    asyncio.run(device.create(at("2of4")))
    control = device.control
    assert control is not None
    (pid,) = control.pipe.glob("*.pid")

    def kill() -> None:
        os.kill(int(pid.read_text()), signal.SIGKILL)

    kill()
    device.note_fault("the MPS daemon does not answer")
    assert asyncio.run(device.poll())
    assert control.runs()
    assert chunks(device) == [12]
    kill()
    bench.board.lost = True
    assert not asyncio.run(device.poll())
    bench.board.lost = False
    assert asyncio.run(device.poll())
    assert control.runs()
    assert device.instances() == ()
    asyncio.run(device.create(at("4of4")))
    assert chunks(device) == [27]


def test_a_gpu_in_parts_is_never_parked(bench: Bench) -> None:
    device = bench.open()
    device.spare(35.0, "measured")
    assert device.shape().sleep_w is None, "the daemon's server keeps its context"


def test_the_server_of_the_daemon_counts_as_ours(bench: Bench) -> None:
    device = bench.open()
    assert device.control is not None
    (pid,) = device.control.pipe.glob("*.pid")
    assert device.serves_us(int(pid.read_text()))
    assert not device.serves_us(os.getpid())


def test_looking_starts_no_daemon(bench: Bench) -> None:
    device = bench.open(exclusive=False)
    assert device.control is None
    assert device.shape().layouts
    assert device.report()["mps"]["pipe"] == ""


def test_gpus_that_cannot_be_parted_are_refused(
    bench: Bench, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.board.mig = bench.board.pending = True
    with pytest.raises(DeviceError, match="MIG mode is on, and MPS parts whole GPUs only"):
        bench.open()
    bench.board.mig = bench.board.pending = None
    bench.board.compute_mode = 2
    with pytest.raises(DeviceError, match="PROHIBITED"):
        bench.open()
    bench.board.compute_mode = 3
    assert not bench.open().shape().one_process, "the one process is the daemon's server"
    bench.close()
    monkeypatch.setenv("CLOVER_MPS_SMS", "12")
    with pytest.raises(DeviceError, match="3 partitions at most, too few for 4 parts"):
        bench.open()
    monkeypatch.setenv("PATH", str(short_path))
    with pytest.raises(DeviceError, match="comes with the NVIDIA driver"):
        bench.open()


@pytest.mark.parametrize("text", ["nvidia/mps", "nvidia:mig/mps", "nvidia:0/mps:4", "emulated:pod-1g.10gb/mps"])
def test_words_that_are_no_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        devices.parse(text)


def test_words_for_parts() -> None:
    assert devices.parse("nvidia:0,2/mps").indices == (0, 2)
    choice = devices.parse("emulated:rtx-4090/mps")
    assert (choice.mps, choice.count, choice.box) == (True, 1, "rtx-4090-1-mps")
