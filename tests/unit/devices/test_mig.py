from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import devices
from clover.config import WorkersConfig
from clover.devices import clients, nvml
from clover.devices.clients import GpuClient
from clover.devices.cpu import CpuDevice
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.devices.ownership import Ownership, OwnPlace
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.interfaces import Device
from clover.types import Placement
from tests.support.fake_nvml import Board, Died, FakeNvml

T = TypeVar("T")
GI = "nvmlDeviceCreateGpuInstanceWithPlacement"
CI = "nvmlGpuInstanceCreateComputeInstance"
GI_GOES = "nvmlGpuInstanceDestroy"
CI_GOES = "nvmlComputeInstanceDestroy"
SIZES = {"1g.5gb": 1, "1g.5gb+me": 1, "1g.10gb": 2, "2g.10gb": 2, "3g.20gb": 4, "4g.20gb": 4, "7g.40gb": 8}


def at(profile: str, start: int = 0, device: str = "gpu0") -> Placement:
    return Placement(device=device, profile=profile, start=start, size=SIZES.get(profile, 1))


class Rig:
    """One fake GPU and a device on it.  `waits` are the seconds it asked to sleep; `asleep` is called instead."""

    def __init__(self, folder: Path, board: Board | None = None) -> None:
        self.folder = folder
        self.board = board or Board()
        self.fake = FakeNvml(self.board)
        self.session = Nvml(self.fake)
        self.waits: list[float] = []
        self.asleep = lambda: None
        self.device: MigDevice | None = None

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.asleep()

    def open(self, **options: Any) -> MigDevice:
        options = {"cores": (1, 2), "back_off_s": (1.0, 2.0), "sleep": self._sleep} | options
        device = MigDevice.open(self.session, 0, self.folder, **options)
        if options.get("exclusive", True):
            self.device = device
        return device

    def restart(self) -> MigDevice:
        """The process dies and another one starts: only the file and the GPU remain."""
        self.device.close()
        return self.open()

    @property
    def recorded(self) -> list[tuple[str, int]]:
        return [(own.profile, own.start) for own in Ownership(self.folder, self.board.uuid, exclusive=False).places]

    def close(self) -> None:
        if self.device is not None:
            self.device.close()
        self.session.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "mig")
    yield rig
    rig.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# --- discovery --------------------------------------------------------------------------------------------------------


def test_everything_is_read_from_the_driver(rig: Rig) -> None:
    device = rig.open()
    shape = device.shape()
    assert (device.name, device.uuid, device.product) == ("gpu0", "GPU-a", "NVIDIA A100-SXM4-40GB")
    assert (device.mig, device.emulated, device.lost) == (True, False, False)
    assert (shape.kind, shape.slices, shape.overlap, shape.emulated) == ("mig", 7, False, False)
    assert shape.label == "NVIDIA A100-SXM4-40GB, MIG"
    assert len(shape.layouts) == len(set(shape.layouts)) == 19
    assert len({tuple(sorted(place.profile for place in layout)) for layout in shape.layouts}) == 14
    assert {place.profile for layout in shape.layouts for place in layout} == {
        "1g.5gb",
        "2g.10gb",
        "3g.20gb",
        "4g.20gb",
        "7g.40gb",
    }
    assert device.shape() is shape
    assert {profile.name: profile.size for profile in device.profiles()} == SIZES
    assert [profile.name for profile in device.profiles() if profile.media] == ["1g.5gb+me"]
    assert device.memory_bytes(at("2g.10gb", 2)) == 9856 << 20
    assert device.memory_bytes(at("1g.10gb", 2)) == 9856 << 20
    assert device.cores(at("1g.5gb", 6)) == (1, 2)
    assert device.threads(at("1g.5gb", 6)) == 1
    assert device.instances() == ()


def test_a_driver_that_knows_fewer_profiles_is_asked_for_all(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Board(last=3))
    device = rig.open()
    assert [profile.name for profile in device.profiles()] == ["1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb"]
    assert device.shape().slices == 4
    assert rig.fake.calls.count("nvmlDeviceGetGpuInstanceProfileInfo") == 18, "there may be gaps"
    rig.close()


def test_mig_without_a_single_profile_is_an_error(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Board(last=-1))
    with pytest.raises(DeviceError, match="no profile"):
        rig.open()
    rig.close()


@pytest.mark.parametrize(
    "place",
    [
        at("2g.10gb", 1),
        at("9g.80gb"),
        at("gpu"),
        at("1g.5gb", 0, device="gpu1"),
        Placement(device="gpu0", profile="1g.5gb", start=0, size=2),
    ],
)
def test_places_the_gpu_does_not_have_are_refused(rig: Rig, place: Placement) -> None:
    device = rig.open()
    for ask in (device.cores, device.threads, device.visible, device.memory_bytes):
        with pytest.raises(DeviceError, match="does not exist on gpu0"):
            ask(place)
    for change in (device.create, device.destroy, device.claim):
        with pytest.raises(DeviceError, match="does not exist on gpu0"):
            run(change(place))
    assert rig.recorded == []


@pytest.mark.parametrize("mode", [None, False])
def test_a_gpu_that_is_not_cut_is_one_instance(tmp_path: Path, mode: bool | None) -> None:
    rig = Rig(tmp_path, Board(mig=mode))
    device = rig.open()
    shape = device.shape()
    whole = at("gpu")
    assert shape.layouts == ((whole,),)
    assert (shape.slices, shape.label) == (1, "NVIDIA A100-SXM4-40GB, without MIG")
    run(device.create(whole))
    assert device.instances() == (whole,) == run(device.reconcile((whole,)))
    assert device.visible(whole) == "GPU-a"
    assert device.memory_bytes(whole) == 40960 << 20
    run(device.destroy(whole))
    assert device.instances() == (whole,)
    with pytest.raises(DeviceError, match="does not exist"):
        run(device.create(at("1g.5gb")))
    assert not set(rig.fake.calls) & {GI, CI, GI_GOES, CI_GOES, "nvmlDeviceSetMigMode"}
    rig.close()


def test_a_pending_change_of_mode_is_said_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = Board(mig=False)
    board.pending = True
    rig = Rig(tmp_path, board)
    assert not rig.open().mig
    assert "gpu0: MIG is off, and on once the GPU was reset" in caplog.text
    rig.close()


# --- making and unmaking ----------------------------------------------------------------------------------------------


def test_an_instance_is_made_where_it_was_asked_for_and_unmade(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 4)))
    assert rig.board.names == [("2g.10gb", 4, True)]
    assert device.instances() == (at("2g.10gb", 4),)
    assert device.visible(at("2g.10gb", 4)) == "MIG-GPU-a-1"
    assert rig.recorded == [("2g.10gb", 4)]
    assert len(device.shape().layouts) == 19  # ours are no obstacle
    with pytest.raises(DeviceError, match="must be made first"):
        device.visible(at("2g.10gb", 2))
    run(device.create(at("2g.10gb", 4)))
    assert rig.fake.calls.count(GI) == 1
    run(device.destroy(at("2g.10gb", 4)))
    run(device.destroy(at("2g.10gb", 4)))
    assert rig.board.names == [] == rig.recorded
    assert rig.fake.calls.index(CI_GOES) < rig.fake.calls.index(GI_GOES)


def test_instances_are_made_and_unmade_side_by_side(rig: Rig) -> None:
    device = rig.open()
    places = [at("1g.5gb", start) for start in range(7)]

    async def all_of(change: Callable[[Placement], Awaitable[None]]) -> None:
        await asyncio.gather(*map(change, places))

    run(all_of(device.create))
    assert rig.board.names == [("1g.5gb", start, True) for start in range(7)]
    assert len({device.visible(place) for place in places}) == 7
    run(all_of(device.destroy))
    assert rig.board.names == [] == rig.recorded


def test_the_intent_is_recorded_before_anything_is_made(rig: Rig) -> None:
    device = rig.open()
    seen = []
    real = rig.fake.boards[0].put
    rig.board.put = lambda *a, **k: (seen.append(list(rig.recorded)), real(*a, **k))[1]
    run(device.create(at("7g.40gb")))
    assert seen == [[("7g.40gb", 0)]]


def test_a_change_goes_on_though_its_caller_is_cancelled(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults[GI] = [nvml.IN_USE]
    asleep, go = asyncio.Event(), asyncio.Event()

    async def hold(seconds: float) -> None:
        asleep.set()
        await go.wait()

    device._work._sleep = hold

    async def cancelled() -> None:
        task = asyncio.ensure_future(device.create(at("3g.20gb", 4)))
        await asleep.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.board.names == []
        go.set()
        await asyncio.gather(*device._work._tasks)

    run(cancelled())
    assert device.instances() == (at("3g.20gb", 4),)
    assert rig.board.names == [("3g.20gb", 4, True)]
    assert rig.fake.calls.count(GI) == 2


def test_changes_of_one_place_wait_for_each_other(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults[GI] = [nvml.IN_USE]
    place = at("3g.20gb", 4)

    async def several() -> None:
        await asyncio.gather(device.create(place), device.create(place), device.destroy(place), device.create(place))

    run(several())
    assert rig.board.names == [("3g.20gb", 4, True)]
    assert (rig.fake.calls.count(GI), rig.fake.calls.count(GI_GOES)) == (3, 1)


def test_a_compute_instance_that_is_refused_takes_its_gpu_instance_along(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults[CI] = [pynvml.NVML_ERROR_UNKNOWN]
    with pytest.raises(DeviceError, match=r"gpu0:3g.20gb@0 cannot be made: its compute .* refused: .*Unknown"):
        run(device.create(at("3g.20gb")))
    assert rig.board.names == [] == rig.recorded
    assert device.instances() == ()
    run(device.create(at("3g.20gb")))
    assert rig.board.names == [("3g.20gb", 0, True)]


def test_half_an_instance_that_cannot_be_taken_back_is_quarantined(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults = {CI: [pynvml.NVML_ERROR_UNKNOWN], GI_GOES: [nvml.IN_USE] * 3}
    with pytest.raises(DeviceError, match=r"gpu0:3g.20gb@0 cannot be removed and is left out"):
        run(device.create(at("3g.20gb")))
    assert rig.board.names == [("3g.20gb", 0, False)]
    assert device.instances() == ()
    assert [item["placement"] for item in device.report()["quarantined"]] == ["gpu0:3g.20gb@0"]
    assert rig.recorded == [("3g.20gb", 0)]


def test_no_room_says_what_is_in_the_way(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    with pytest.raises(DeviceError, match=r"gpu0:7g.40gb@0 cannot be made: .* gpu0:2g.10gb@2 \(made by Clover\)"):
        run(device.create(at("7g.40gb")))
    assert rig.recorded == [("2g.10gb", 2)]
    rig.board.put("1g.5gb", 6)  # somebody else, meanwhile
    with pytest.raises(DeviceError, match=r"gpu0:1g.5gb@6 \(not made by Clover\)"):
        run(device.create(at("3g.20gb", 4)))
    assert rig.recorded == [("2g.10gb", 2)]
    assert device.report()["foreign"] == ["gpu0:1g.5gb@6"]


def test_no_room_because_exactly_this_stands_and_is_somebody_elses(rig: Rig) -> None:
    device = rig.open()
    rig.board.put("1g.5gb", 3)
    with pytest.raises(DeviceError, match=r"gpu0:1g.5gb@3 \(not made by Clover\)"):
        run(device.create(at("1g.5gb", 3)))
    assert rig.recorded == []
    with pytest.raises(DeviceError, match="left alone"):
        run(device.destroy(at("1g.5gb", 3)))
    assert rig.board.names == [("1g.5gb", 3, True)]


def test_what_is_somebody_elses_is_not_recorded_for_a_moment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss, or a death, in that moment would make it ours, and the next look would remove it."""
    device = rig.open()
    rig.board.put("1g.5gb", 3)
    rig.fake.faults[GI] = [nvml.GPU_IS_LOST]
    monkeypatch.setattr(Ownership, "add", lambda self, place: pytest.fail("recorded"))
    with pytest.raises(DeviceError, match="not made by Clover"):
        run(device.create(at("1g.5gb", 3)))
    assert GI not in rig.fake.calls


def test_one_that_somebody_makes_at_the_same_moment_stays_theirs(rig: Rig) -> None:
    device = rig.open()
    real = rig.fake.nvmlDeviceCreateGpuInstanceWithPlacement

    def late(*arguments: Any) -> Any:
        rig.board.put("1g.5gb", 3)
        return real(*arguments)

    object.__setattr__(rig.fake, GI, late)
    with pytest.raises(DeviceError, match=r"gpu0:1g.5gb@3 \(not made by Clover\)"):
        run(device.create(at("1g.5gb", 3)))
    assert rig.recorded == []


def test_no_room_because_exactly_this_stands_and_is_ours(rig: Rig) -> None:
    """What the books forgot and the record knows: one that appears again after the GPU was away, say."""
    device = rig.open()
    run(device.create(at("1g.5gb", 3)))
    device._books.ours.clear()
    run(device.create(at("1g.5gb", 3)))
    assert device.visible(at("1g.5gb", 3)) == "MIG-GPU-a-1"
    assert rig.recorded == [("1g.5gb", 3)]


def test_a_refusal_after_the_fact_is_taken_for_what_stands(rig: Rig) -> None:
    device = rig.open()
    real = rig.fake.nvmlDeviceCreateGpuInstanceWithPlacement

    def late(*arguments: Any) -> Any:
        real(*arguments)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)

    object.__setattr__(rig.fake, GI, late)
    run(device.create(at("4g.20gb")))
    assert rig.board.names == [("4g.20gb", 0, True)]
    assert device.instances() == (at("4g.20gb"),)


def test_making_is_patient_only_with_what_is_in_use(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults = {GI: [nvml.IN_USE], CI: [nvml.IN_USE]}
    run(device.create(at("4g.20gb")))
    assert rig.waits == [1.0, 1.0]
    rig.fake.faults = {GI: [nvml.NO_PERMISSION]}
    with pytest.raises(DeviceError, match="root"):
        run(device.create(at("3g.20gb", 4)))
    assert rig.waits == [1.0, 1.0]
    assert rig.recorded == [("4g.20gb", 0)]


def test_nothing_is_made_where_the_intent_cannot_be_recorded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    device = rig.open()
    monkeypatch.setattr(Ownership, "add", lambda self, place: (_ for _ in ()).throw(DeviceError("the disk is full")))
    with pytest.raises(DeviceError, match="the disk is full"):
        run(device.create(at("1g.5gb")))
    assert GI not in rig.fake.calls


def test_an_instance_cut_up_by_hand_is_made_anew(rig: Rig) -> None:
    device = rig.open()
    gi = rig.board.put("4g.20gb", 0, cut=2)
    run(device.claim(at("4g.20gb")))
    assert device.instances() == ()
    run(device.create(at("4g.20gb")))
    assert device.instances() == (at("4g.20gb"),)
    assert rig.board.standing[gi][3] == 4


def test_one_that_somebody_removed_is_made_anew(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("4g.20gb")))
    rig.board.standing.clear()
    run(device.create(at("4g.20gb")))
    assert rig.board.names == [("4g.20gb", 0, True)]
    assert rig.recorded == [("4g.20gb", 0)]


def test_one_that_somebody_made_in_the_place_of_ours_is_theirs(rig: Rig) -> None:
    rig.board.put("1g.5gb", 6)  # so that the next one gets another number
    device = rig.open()
    run(device.create(at("1g.5gb", 3)))
    rig.board.standing.clear()
    rig.board.put("1g.5gb", 3)
    with pytest.raises(DeviceError, match=r"in its place stands gpu0:1g.5gb@3 \(not made by Clover\)"):
        run(device.create(at("1g.5gb", 3)))
    assert device.report()["foreign"] == ["gpu0:1g.5gb@3"]
    assert rig.recorded == []
    device = rig.restart()
    assert run(device.reconcile()) == ()
    assert rig.board.names == [("1g.5gb", 3, True)], "nor does the next start remove it"


def test_one_that_somebody_removed_is_gone(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("4g.20gb")))
    rig.board.standing.clear()
    run(device.destroy(at("4g.20gb")))
    assert rig.recorded == []
    assert device.report()["quarantined"] == []


# --- in use, and quarantine -------------------------------------------------------------------------------------------


def test_a_holder_that_goes_is_waited_for(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("1g.5gb", 2)))
    rig.board.holders[1] = [77]
    rig.asleep = lambda: rig.board.holders.clear() if len(rig.waits) == 2 else None
    run(device.destroy(at("1g.5gb", 2)))
    assert rig.waits == [1.0, 2.0]
    assert rig.board.names == [] == rig.recorded


def quarantined(rig: Rig, place: Placement | None = None) -> MigDevice:
    device = rig.open()
    place = place or at("1g.5gb", 2)
    run(device.create(place))
    rig.board.holders[1] = [77, 5]
    with pytest.raises(DeviceError, match=f"{place.id} cannot be removed and is left out until it can: in use"):
        run(device.destroy(place))
    return device


def test_a_holder_that_stays_ends_in_quarantine(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = quarantined(rig)
    assert rig.waits == [1.0, 2.0]
    assert device.instances() == ()
    assert rig.recorded == [("1g.5gb", 2)]
    (item,) = device.report()["quarantined"]
    assert item["placement"] == "gpu0:1g.5gb@2"
    assert "in use" in item["reason"]
    assert "held by process 5, 77" in item["reason"]
    assert "quarantined" in caplog.text
    shape = device.shape()
    assert shape.layouts
    assert shape.slices == 7
    for layout in shape.layouts:
        assert all(place.start > 2 or place.start + place.size <= 2 for place in layout)
        assert sum(place.slices for place in layout) <= 6


def test_the_quarantine_names_what_may_hold_the_instance(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def find(nodes: Any, *, without: Any) -> tuple[GpuClient, ...]:
        asked.append((nodes, tuple(without), list(rig.waits)))
        return (GpuClient(pid=3, name="nv-hostengine", unit="nvidia-dcgm"),)

    monkeypatch.setattr(clients, "find", find)
    device = quarantined(rig)
    assert asked == [(("/dev/nvidia-caps/",), (5, 77), [1.0, 2.0])]  # once, after the last try
    (item,) = device.report()["quarantined"]
    assert item["reason"].endswith(
        "(held by process 5, 77; nv-hostengine (process 3) may hold it: systemctl stop nvidia-dcgm)"
    )
    assert rig.fake.calls.count("nvmlDeviceGetComputeRunningProcesses_v3") == 1
    assert rig.fake.asked == []


# --- compute modes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "alone"), [(0, False), (1, True), (3, True)])
def test_a_gpu_for_one_process_says_so(tmp_path: Path, mode: int, alone: bool) -> None:
    rig = Rig(tmp_path, Board(mig=None))
    rig.board.compute_mode = mode
    assert rig.open().shape().one_process is alone
    rig.close()


def test_a_prohibited_gpu_is_refused_with_what_to_run(rig: Rig) -> None:
    rig.board.compute_mode = 2
    with pytest.raises(DeviceError, match=r"gpu0 is in compute mode PROHIBITED.* nvidia-smi -i 0 -c DEFAULT"):
        rig.open()


# --- critical errors, and ways to be lost -----------------------------------------------------------------------------


def test_a_gpu_whose_handle_stays_unknown_is_lost_and_comes_back(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults["nvmlDeviceGetPowerUsage"] = [nvml.UNKNOWN] * 4
    rig.fake.faults["nvmlDeviceGetHandleByUUID"] = [0, *[nvml.UNKNOWN] * 3, nvml.UNKNOWN]
    assert [run(device.poll()) for _ in range(5)] == [True, True, True, False, False]
    assert device.lost
    assert device.shape().layouts == ()
    assert run(device.poll())
    assert device.shape().layouts


def test_an_error_condemns_the_gpu_until_it_was_gone(rig: Rig) -> None:
    device = rig.open()
    device.take_xid(95, None)
    assert device.lost
    assert not run(device.poll())  # though it answers
    assert device.report()["errors"] == ["Xid 95: a memory error that may have met any program"]
    rig.board.lost = True
    assert not run(device.poll())
    rig.board.lost = False
    assert run(device.poll())
    assert not device.lost


def test_an_error_of_an_instance_takes_that_out_of_use_until_it_was_made_anew(rig: Rig) -> None:
    device = rig.open()
    for start in (2, 3):
        run(device.create(at("1g.5gb", start)))
    device.take_xid(94, 1)
    assert device.instances() == (at("1g.5gb", 3),)
    (item,) = device.report()["quarantined"]
    assert item == {
        "placement": "gpu0:1g.5gb@2",
        "reason": "Xid 94 of GPU instance 1: a memory error that ended the programs it met",
    }
    assert run(device.retry_quarantined()) == (at("1g.5gb", 2),)
    assert not device.lost


def test_an_error_that_asks_for_a_reset_only_is_reported(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = rig.open()
    device.take_xid(63, None)
    device.take_xid(31, 99)
    assert run(device.poll())
    assert len(device.report()["errors"]) == 2
    assert "gpu0: Xid 63: memory that failed will be replaced by the next reset; a reset of the GPU" in caplog.text


def test_quarantine_is_left_once_removal_works(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = quarantined(rig)
    calls = len(rig.fake.calls)
    assert run(device.retry_quarantined()) == ()
    assert rig.fake.calls[calls:].count(CI_GOES) == 1  # one try and no waiting
    assert rig.waits == [1.0, 2.0]
    rig.board.holders.clear()
    assert run(device.retry_quarantined()) == (at("1g.5gb", 2),)
    assert device.report()["quarantined"] == []
    assert len(device.shape().layouts) == 19
    assert rig.board.names == [] == rig.recorded
    assert "gpu0:1g.5gb@2 is free again" in caplog.text
    calls = len(rig.fake.calls)
    assert run(device.retry_quarantined()) == ()
    assert len(rig.fake.calls) == calls


def test_a_leaked_handle_leaves_half_an_instance_in_quarantine(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 0)))
    rig.fake.faults[GI_GOES] = [nvml.IN_USE] * 4
    with pytest.raises(DeviceError, match="no process is to be seen on it"):
        run(device.destroy(at("2g.10gb", 0)))
    assert rig.board.names == [("2g.10gb", 0, False)]
    assert run(device.retry_quarantined()) == ()
    assert run(device.retry_quarantined()) == (at("2g.10gb", 0),)


def test_a_place_where_nothing_can_be_made_is_left_out_until_something_can(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.open()
    run(device.create(at("3g.20gb", 4)))
    rig.fake.faults = {GI: [pynvml.NVML_ERROR_UNKNOWN] * 2}
    with pytest.raises(DeviceError, match=r"gpu0:3g.20gb@0 cannot be made"):
        run(device.create(at("3g.20gb", 0)))
    device.bar(at("3g.20gb", 0), "the driver refused")
    assert device.report()["quarantined"] == [{"placement": "gpu0:3g.20gb@0", "reason": "the driver refused"}]
    assert "gpu0:3g.20gb@0 is quarantined: the driver refused" in caplog.text
    assert {place.start >= 4 for layout in device.shape().layouts for place in layout} == {True}
    assert run(device.retry_quarantined()) == ()  # still refused: the probe says so
    assert device.report()["quarantined"] != []
    assert run(device.retry_quarantined()) == (at("3g.20gb", 0),)
    assert device.report()["quarantined"] == []
    assert len(device.shape().layouts) == 19
    assert rig.board.names == [("3g.20gb", 4, True)]  # the probe left nothing
    assert rig.recorded == [("3g.20gb", 4)]


def test_a_place_with_something_in_it_is_not_barred(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("3g.20gb", 4)))
    device.bar(at("7g.40gb", 0), "no room")
    assert device.report()["quarantined"] == []
    assert len(device.shape().layouts) == 19


def test_what_is_quarantined_can_be_taken_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The way back to the last deployment: it cannot be removed, but it can be used."""
    device = quarantined(rig)
    run(device.create(at("1g.5gb", 2)))
    assert device.instances() == (at("1g.5gb", 2),)
    assert device.report()["quarantined"] == []
    assert len(device.shape().layouts) == 19
    assert "used again" in caplog.text


def test_half_an_instance_in_quarantine_is_completed_when_taken_back(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 0)))
    rig.fake.faults[GI_GOES] = [nvml.IN_USE] * 3
    with pytest.raises(DeviceError):
        run(device.destroy(at("2g.10gb", 0)))
    run(device.create(at("2g.10gb", 0)))
    assert rig.board.names == [("2g.10gb", 0, True)]
    assert device.instances() == (at("2g.10gb", 0),)


def test_quarantine_of_the_whole_gpu_leaves_no_layout(rig: Rig) -> None:
    device = quarantined(rig, at("7g.40gb"))
    assert device.shape().layouts == ()
    with pytest.raises(DeviceError, match=r"gpu0:7g.40gb@0 \(quarantined\)"):
        run(device.create(at("1g.5gb")))


def test_removal_that_is_not_permitted_is_not_waited_for(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("1g.5gb")))
    rig.fake.faults[CI_GOES] = [nvml.NO_PERMISSION]
    with pytest.raises(DeviceError, match="root"):
        run(device.destroy(at("1g.5gb")))
    assert rig.waits == []
    assert device.report()["quarantined"][0]["placement"] == "gpu0:1g.5gb@0"


def test_any_other_refusal_of_a_removal_is_tried_again(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("1g.5gb")))
    rig.fake.faults[CI_GOES] = [pynvml.NVML_ERROR_UNKNOWN]
    run(device.destroy(at("1g.5gb")))
    assert rig.board.names == []


# --- starting again ---------------------------------------------------------------------------------------------------


def test_what_matches_is_adopted_what_is_stale_removed_what_is_foreign_left(rig: Rig) -> None:
    device = rig.open()
    for place in (at("4g.20gb"), at("1g.5gb", 4), at("1g.5gb", 5)):
        run(device.create(place))
    rig.board.put("1g.5gb", 6)
    device = rig.restart()
    assert len(device.instances()) == 3
    keep = (at("4g.20gb"), at("1g.5gb", 5), at("2g.10gb", 2), at("1g.5gb", 4, device="gpu1"))
    assert run(device.reconcile(keep)) == (at("4g.20gb"), at("1g.5gb", 5)) == device.instances()
    assert rig.board.names == [("1g.5gb", 5, True), ("1g.5gb", 6, True), ("4g.20gb", 0, True)]
    assert rig.recorded == [("4g.20gb", 0), ("1g.5gb", 5)]
    assert device.report()["foreign"] == ["gpu0:1g.5gb@6"]
    assert device.shape().slices == 7
    for layout in device.shape().layouts:
        assert all(place.start + place.size <= 6 for place in layout)
        assert sum(place.slices for place in layout) <= 6
    assert CI not in rig.fake.calls[rig.fake.calls.index(CI_GOES) :]
    assert device.visible(at("4g.20gb")) == "MIG-GPU-a-1"


@pytest.mark.parametrize(("most", "small", "compute"), [(4, 3, 6), (7, 6, 6)])
def test_what_is_foreign_counts_against_caps_and_compute_slices(rig: Rig, most: int, small: int, compute: int) -> None:
    """On a die with as many places for 1g as memory slices, room on that axis alone would promise too much."""
    name, kind, slices, size, _, _, memory = rig.board.table[0]
    rig.board.table[0] = (name, kind, slices, size, tuple(range(8)), most, memory)
    rig.board.put("1g.5gb", 7)
    layouts = rig.open().shape().layouts
    assert max(sum(place.profile == "1g.5gb" for place in layout) for layout in layouts) == small
    assert max(sum(place.slices for place in layout) for layout in layouts) == compute


def test_what_is_under_way_is_waited_for_before_anything_is_cleared(rig: Rig) -> None:
    """A server that stops in the middle of a change leaves nothing behind that it began."""
    device = rig.open()

    async def story() -> None:
        rig.fake.faults[GI] = [nvml.IN_USE]
        making = asyncio.ensure_future(device.create(at("2g.10gb", 2)))
        while not rig.waits:
            await asyncio.sleep(0)
        making.cancel()
        assert rig.board.names == []
        clearing = asyncio.ensure_future(device.reconcile())
        for _ in range(20):
            await asyncio.sleep(0)  # it would have looked by now
        awake.set()
        assert await clearing == ()

    awake = asyncio.Event()

    async def nap(seconds: float) -> None:
        rig.waits.append(seconds)
        await awake.wait()

    device._work._sleep = nap
    run(story())
    assert rig.fake.calls.count(GI) == 2, "it was made after all"
    assert rig.board.names == [] == rig.recorded


def test_nothing_is_adopted_unless_it_is_asked_for(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("7g.40gb")))
    device = rig.restart()
    assert run(device.reconcile()) == ()
    assert rig.board.names == [] == rig.recorded


def test_crash_after_the_intent(rig: Rig) -> None:
    rig.open()
    rig.device.close()
    owned = Ownership(rig.folder, "GPU-a")
    owned.add(OwnPlace(profile="2g.10gb", start=2, size=2))
    owned.close()
    device = rig.open()
    assert run(device.reconcile((at("2g.10gb", 2),))) == ()
    assert rig.recorded == []
    assert device.instances() == ()


@pytest.mark.parametrize("kept", [True, False])
def test_crash_between_the_gpu_instance_and_its_compute_instance(rig: Rig, kept: bool) -> None:
    """What is left is seen by no enumeration of MIG devices; it is completed, or removed."""
    owned = Ownership(rig.folder, "GPU-a")
    owned.add(OwnPlace(profile="2g.10gb", start=2, size=2))
    owned.close()
    rig.board.put("2g.10gb", 2, complete=False)
    device = rig.open()
    assert device.instances() == ()
    adopted = run(device.reconcile((at("2g.10gb", 2),) if kept else ()))
    assert adopted == ((at("2g.10gb", 2),) if kept else ()) == device.instances()
    assert rig.board.names == ([("2g.10gb", 2, True)] if kept else [])
    assert rig.recorded == ([("2g.10gb", 2)] if kept else [])


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_call_leaves_nothing_that_the_next_start_does_not_know(tmp_path: Path, after: int) -> None:
    """Every driver call of a few changes in turn is the last one, before or after its effect."""
    kept = at("1g.5gb", 4)

    async def changes(device: MigDevice) -> None:
        await device.create(at("4g.20gb"))
        await device.create(kept)
        await device.destroy(at("4g.20gb"))
        await asyncio.gather(device.create(at("2g.10gb", 0)), device.create(at("2g.10gb", 2)))

    died = 0
    while True:
        rig = Rig(tmp_path / f"{died}")
        rig.board.put("1g.5gb", 6)
        device = rig.open()
        rig.fake.dies, rig.fake.after = died + 1, after
        try:
            run(changes(device))
            break
        except Died:
            died += 1
        finally:
            with contextlib.suppress(Died):
                rig.session.of_gpu(0).call_sync(lambda: None)  # calls that were under way are over
            rig.fake.dies = -1
            ours = [item[:2] for item in rig.board.names if item != ("1g.5gb", 6, True)]
            assert set(ours) <= set(rig.recorded)
            stood = kept in [at(*item) for item in ours]
            device = rig.restart()
            assert run(device.reconcile((kept,))) == ((kept,) if stood else ()) == device.instances()
            assert rig.board.names == [*([("1g.5gb", 4, True)] if stood else []), ("1g.5gb", 6, True)]
            assert rig.recorded == ([("1g.5gb", 4)] if stood else [])
            rig.close()
    assert died > 30


@pytest.mark.slow
@given(st.data())
def test_whatever_the_driver_refuses_the_books_the_record_and_the_gpu_agree(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random changes under random refusals: what stands is what is known, and the next start can clear it."""
    rig = Rig(tmp_path_factory.mktemp("mig"))
    rig.board.put("1g.5gb", 6)
    device = rig.open(back_off_s=(1.0,))
    codes = st.sampled_from([0, 0, nvml.IN_USE, pynvml.NVML_ERROR_UNKNOWN, nvml.GPU_IS_LOST, nvml.TIMEOUT])
    places = [at(name, start) for name in ("1g.5gb", "2g.10gb", "4g.20gb") for start in (0, 2, 4, 6)]
    places = [place for place in places if place.profile != "4g.20gb" or place.start == 0]
    places = [place for place in places if place.profile != "2g.10gb" or place.start < 6]
    try:
        for _ in range(data.draw(st.integers(1, 6))):
            for symbol in (GI, CI, GI_GOES, CI_GOES):
                rig.fake.faults[symbol] = data.draw(st.lists(codes, max_size=3))
            change = data.draw(st.sampled_from([device.create, device.destroy]))
            place = data.draw(st.sampled_from(places))
            before = device.instances()
            try:
                run(change(place))
                assert (place in device.instances()) == (change == device.create)
            except DeviceError as error:
                if not isinstance(error, DeviceLost) and change == device.create:
                    assert place not in device.instances()
                if not isinstance(error, DeviceLost):
                    assert set(before) - {place} <= set(device.instances())
            rig.fake.faults.clear()
            run(device.poll())
            assert not device.lost
            names = [item[:2] for item in rig.board.names if item != ("1g.5gb", 6, True)]
            stuck = [item["placement"] for item in device.report()["quarantined"]]
            known = [item.id for item in device.instances()] + stuck
            assert sorted(known) == sorted(at(*name).id for name in names)
            assert sorted(rig.recorded) == sorted(names)
            for layout in device.shape().layouts:
                taken = [at(*item[:2]) for item in rig.board.names if at(*item[:2]).id in [*stuck, "gpu0:1g.5gb@6"]]
                for mine in layout:
                    assert all(mine.start + mine.size <= o.start or o.start + o.size <= mine.start for o in taken)
        device = rig.restart()
        run(device.reconcile())
        assert rig.board.names == [("1g.5gb", 6, True)]
        assert rig.recorded == []
        assert len(device.shape().layouts) > 0
    finally:
        rig.close()


def test_half_an_instance_that_cannot_be_completed_is_removed_and_not_adopted(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.board.standing[1][3] = 0
    device = rig.restart()
    rig.fake.faults[CI] = [pynvml.NVML_ERROR_UNKNOWN]
    assert run(device.reconcile((at("2g.10gb", 2),))) == ()
    assert rig.board.names == [] == rig.recorded
    assert "not adopted: gpu0:2g.10gb@2" in caplog.text


def test_crash_between_removal_and_striking_out(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.board.standing.clear()
    device = rig.restart()
    assert device.instances() == ()
    assert rig.recorded == []


def test_without_its_record_an_instance_is_nobodys_we_know(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    (rig.folder / "GPU-a.json").unlink()
    device = rig.restart()
    assert run(device.reconcile((at("2g.10gb", 2),))) == ()
    assert rig.board.names == [("2g.10gb", 2, True)]
    assert device.report()["foreign"] == ["gpu0:2g.10gb@2"]


def test_a_damaged_record_stops_the_start_and_touches_nothing(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    path = rig.folder / "GPU-a.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DeviceError, match="damaged"):
        rig.restart()
    assert rig.board.names == [("2g.10gb", 2, True)]


def test_nothing_of_another_boot_is_taken_for_ours(rig: Rig) -> None:
    device = rig.open(boot="monday")
    run(device.create(at("2g.10gb", 2)))
    device.close()
    device = rig.open(boot="tuesday")  # after a reboot nothing of ours can stand: somebody made the same one
    assert run(device.reconcile()) == ()
    assert rig.board.names == [("2g.10gb", 2, True)]
    assert device.report()["foreign"] == ["gpu0:2g.10gb@2"]


def test_what_is_stale_and_held_is_waited_for_all_at_once_then_quarantined(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.open()
    for start in range(3):
        run(device.create(at("1g.5gb", start)))
    rig.board.holders = {1: [11], 2: [12]}
    rig.asleep = lambda: rig.board.holders.pop(1, None)
    device = rig.restart()
    assert run(device.reconcile()) == ()
    assert rig.waits == [1.0, 1.0, 2.0]
    assert rig.board.names == [("1g.5gb", 1, True)]
    assert [item["placement"] for item in device.report()["quarantined"]] == ["gpu0:1g.5gb@1"]
    assert rig.recorded == [("1g.5gb", 1)]
    # The next start tries again, since it is still ours.
    rig.board.holders.clear()
    device = rig.restart()
    run(device.reconcile())
    assert rig.board.names == []


def test_an_instance_is_handed_over_by_an_operator_only(rig: Rig) -> None:
    rig.board.put("1g.5gb", 6)
    device = rig.open()
    assert device.instances() == ()
    run(device.claim(at("1g.5gb", 6)))
    assert device.instances() == (at("1g.5gb", 6),)
    assert rig.recorded == [("1g.5gb", 6)]
    assert len(device.shape().layouts) == 19
    run(device.destroy(at("1g.5gb", 6)))
    assert rig.board.names == []
    with pytest.raises(DeviceError, match=r"no instance of somebody else stands at gpu0:1g.5gb@5"):
        run(device.claim(at("1g.5gb", 5)))


def test_two_servers_on_one_gpu_are_refused_and_looking_is_allowed(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    with pytest.raises(DeviceError, match="another Clover holds GPU-a"):
        rig.open()
    looking = rig.open(exclusive=False)
    assert looking.instances() == (at("2g.10gb", 2),)
    with pytest.raises(DeviceError, match="reading only"):
        run(looking.create(at("1g.5gb", 6)))
    assert rig.board.names == [("2g.10gb", 2, True)]


def test_looking_strikes_nothing_out(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.board.standing.clear()
    assert rig.open(exclusive=False).instances() == ()
    assert rig.recorded == [("2g.10gb", 2)]


# --- a GPU that is lost -----------------------------------------------------------------------------------------------


def test_a_lost_gpu_has_no_layouts_and_refuses_everything(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    calls = len(rig.fake.calls)
    assert run(device.poll())
    assert rig.fake.calls[calls:] == ["nvmlDeviceGetPowerUsage"]
    rig.board.lost = True
    assert not run(device.poll())
    assert device.lost
    assert device.shape().layouts == ()
    assert device.shape().slices == 7
    assert device.instances() == ()
    assert device.report()["lost"]
    assert device.losses == 1
    assert caplog.text.count("is lost") == 1
    for change in (device.create, device.destroy, device.claim):
        with pytest.raises(DeviceLost, match="gpu0: the GPU is lost"):
            run(change(at("2g.10gb", 2)))
    with pytest.raises(DeviceLost):
        device.visible(at("2g.10gb", 2))
    with pytest.raises(DeviceLost):
        run(device.reconcile())
    assert run(device.retry_quarantined()) == ()
    assert device.memory_bytes(at("2g.10gb", 2)) == 9856 << 20
    assert not run(device.poll())
    assert rig.recorded == [("2g.10gb", 2)]


@pytest.mark.parametrize("symbol", [GI, CI])
def test_loss_while_making_leaves_the_record_and_is_cleared_up_on_return(rig: Rig, symbol: str) -> None:
    device = rig.open()
    rig.fake.faults[symbol] = [nvml.GPU_IS_LOST]
    with pytest.raises(DeviceLost):
        run(device.create(at("2g.10gb", 2)))
    assert device.lost
    assert rig.recorded == [("2g.10gb", 2)]
    assert run(device.poll())
    assert rig.board.names == [] == rig.recorded
    run(device.create(at("2g.10gb", 2)))
    assert device.instances() == (at("2g.10gb", 2),)


def test_loss_while_removing_is_made_good_on_return(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.fake.faults[GI_GOES] = [nvml.GPU_IS_LOST]
    with pytest.raises(DeviceLost):
        run(device.destroy(at("2g.10gb", 2)))
    assert rig.recorded == [("2g.10gb", 2)]
    assert run(device.poll())
    assert rig.board.names == [] == rig.recorded


def test_a_gpu_that_comes_back_keeps_what_still_stands(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = rig.open()
    for place in (at("2g.10gb", 2), at("1g.5gb", 6), at("1g.5gb", 0)):
        run(device.create(place))
    rig.board.lost = True
    run(device.poll())
    with pytest.raises(DeviceLost):
        run(device.destroy(at("1g.5gb", 6)))  # its worker is gone; nobody will ask again
    rig.board.lost = False
    gone = next(gi for gi, item in rig.board.standing.items() if item[1] == 0)
    del rig.board.standing[gone]
    assert run(device.poll())
    assert not device.lost
    assert device.instances() == (at("2g.10gb", 2),)
    assert rig.board.names == [("2g.10gb", 2, True)]
    assert rig.recorded == [("2g.10gb", 2)]
    assert len(device.shape().layouts) == 19
    assert "gpu0 answers again" in caplog.text


def test_what_is_wanted_again_after_the_return_is_not_removed(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.board.lost = True
    with pytest.raises(DeviceLost):
        run(device.create(at("1g.5gb", 0)))
    rig.board.lost = False
    run(device.poll())
    run(device.create(at("1g.5gb", 0)))
    assert device.instances() == (at("1g.5gb", 0), at("2g.10gb", 2))


def test_a_reading_that_fails_is_not_a_loss(rig: Rig) -> None:
    device = rig.open()
    rig.fake.faults["nvmlDeviceGetPowerUsage"] = [nvml.NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN]
    assert run(device.poll())
    assert run(device.poll())


def test_a_gpu_that_is_back_but_does_not_answer_stays_lost(rig: Rig) -> None:
    device = rig.open()
    rig.board.lost = True
    run(device.poll())
    rig.board.lost = False
    rig.fake.faults["nvmlDeviceGetGpuInstances"] = [pynvml.NVML_ERROR_UNKNOWN]
    assert not run(device.poll())
    assert run(device.poll())


def test_a_gpu_that_stays_away_does_not_fill_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    device = rig.open()
    rig.board.lost = True
    run(device.poll())
    rig.fake.faults["nvmlDeviceGetHandleByUUID"] = [nvml.NOT_FOUND] * 5
    caplog.clear()
    for _ in range(5):
        assert not run(device.poll())
    assert [record.levelname for record in caplog.records if "no such GPU" in record.message] == ["WARNING"]


def test_removal_on_return_that_fails_is_quarantined(rig: Rig) -> None:
    device = rig.open()
    run(device.create(at("2g.10gb", 2)))
    rig.fake.faults[CI_GOES] = [nvml.GPU_IS_LOST]
    with pytest.raises(DeviceLost):
        run(device.destroy(at("2g.10gb", 2)))
    rig.board.holders[1] = [9]
    assert run(device.poll())
    assert [item["placement"] for item in device.report()["quarantined"]] == ["gpu0:2g.10gb@2"]


# --- the factory ------------------------------------------------------------------------------------------------------


def built(tmp_path: Path, text: str, *boards: Board, **options: Any) -> dict[str, Device]:
    session = Nvml(FakeNvml(*boards))
    try:
        return devices.build(WorkersConfig(device=text), tmp_path, session=session, **options)
    except BaseException:
        session.close()
        raise


def test_the_cpu_is_one_device(tmp_path: Path) -> None:
    found = devices.build(WorkersConfig(device="cpu"), tmp_path)
    assert list(found) == ["cpu0"]
    assert isinstance(found["cpu0"], CpuDevice)
    whole = found["cpu0"].shape().layouts[0][0]
    assert found["cpu0"].visible(whole) == ""
    assert found["cpu0"].memory_bytes(whole) == 0
    with pytest.raises(DeviceError):
        found["cpu0"].visible(at("1g.5gb"))
    devices.close(found)


def test_gpus_are_called_by_their_number(tmp_path: Path) -> None:
    boards = [Board("GPU-a"), Board("GPU-b", mig=None), Board("GPU-c")]
    found = built(tmp_path, "nvidia", *boards)
    assert list(found) == ["gpu0", "gpu1", "gpu2"]
    assert [device.shape().slices for device in found.values()] == [7, 1, 7]
    assert found["gpu2"].cores(at("1g.5gb", 0, device="gpu2")) == CpuDevice().worker_cores
    with pytest.raises(DeviceError, match="another Clover holds GPU-c"):
        built(tmp_path, "nvidia:2", *boards)
    devices.close(found)
    found = built(tmp_path, "nvidia:2,0", *boards)
    assert list(found) == ["gpu0", "gpu2"]
    assert {item.name for item in (tmp_path / "mig").iterdir()} == {"GPU-a.lock", "GPU-b.lock", "GPU-c.lock"}
    devices.close(found)


def test_one_gpu_that_is_held_lets_go_of_the_others(tmp_path: Path) -> None:
    boards = [Board("GPU-a"), Board("GPU-b")]
    found = built(tmp_path, "nvidia:1", *boards)
    with pytest.raises(DeviceError, match="another Clover holds GPU-b"):
        built(tmp_path, "nvidia", *boards)
    other = built(tmp_path, "nvidia:0", *boards)
    devices.close(other)
    devices.close(found)


def test_a_lost_gpu_is_left_out_unless_it_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boards = [Board("GPU-a"), Board("GPU-b")]
    boards[0].lost = True
    found = built(tmp_path, "nvidia", *boards)
    assert list(found) == ["gpu1"]
    assert "gpu0 is left out until the next start" in caplog.text
    devices.close(found)
    with pytest.raises(DeviceLost, match="gpu0"):
        built(tmp_path, "nvidia:0,1", *boards)
    boards[1].lost = True
    with pytest.raises(DeviceLost, match="gpu1"):
        built(tmp_path, "nvidia", *boards)


def test_a_gpu_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    session = Nvml(FakeNvml(Board("GPU-a"), Board("GPU-b", mig=None)))
    session.library.faults["nvmlDeviceGetGpuInstances"] = [nvml.NO_PERMISSION]
    with pytest.raises(DeviceError, match=r"^gpu0: not permitted"):
        devices.build(WorkersConfig(device="nvidia"), tmp_path, session=session)
    devices.close(devices.build(WorkersConfig(device="nvidia:1"), tmp_path, session=session))


@pytest.mark.parametrize("visible", ["1", ""])
def test_a_choice_made_in_cudas_own_words_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match="name those to use by their numbers"):
        devices.build(WorkersConfig(device="nvidia"), tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "give cpu, nvidia"),
        ("gpu", "give cpu, nvidia"),
        ("cpu:2", "give cpu, nvidia"),
        ("nvidia:", "numbers of GPUs"),
        ("nvidia:a", "numbers of GPUs"),
        ("nvidia:0,", "numbers of GPUs"),
        ("nvidia:-1", "numbers of GPUs"),
        ("nvidia:0,0", "twice"),
        ("nvidia:1", "there is no GPU 1: the driver sees 0 to 0"),
        ("emulated", "emulated:NAME:COUNT"),
        ("emulated:a100-40gb:", "emulated:NAME:COUNT"),
        ("emulated:v100", "no table of a GPU 'v100'; known: a100-40gb, "),
        ("emulated::2", "emulated:NAME:COUNT"),
        ("emulated:a100-40gb:two", "emulated:NAME:COUNT"),
        ("emulated:a100-40gb:2:3", "there is no GPU 3: the box has 0 to 1"),
        ("emulated:a100-40gb:-1", "emulated:NAME:COUNT"),
        ("emulated:a100-40gb:0", "1 to 32 GPUs, not 0"),
        ("emulated:a100-40gb:65", "1 to 32 GPUs, not 65"),
        ("emulated:pod-", "no GPU has a profile ''; known: 1g.10gb, "),
        ("emulated:pod-9g.10gb", "no GPU has a profile '9g.10gb'"),
        ("emulated:pod-1g.10gb:8", "1 to 7 instances of 1g.10gb of a100-80gb"),
        ("emulated:pod-1g.10gb:0", "1 to 7 instances"),
        ("emulated:v100:1", "no table of a GPU 'v100'; known: a100-40gb, "),
    ],
)
def test_words_that_name_no_device(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        built(tmp_path, text)


@pytest.mark.parametrize("name", ["rtx-4090", "a100-40gb"])
def test_an_emulated_box_without_a_count_has_one_gpu(name: str) -> None:
    assert devices.parse(f"emulated:{name}") == devices.parse(f"emulated:{name}:1")


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    fake = FakeNvml()
    fake.boards = ()
    session = Nvml(fake)
    with pytest.raises(ConfigError, match="sees no GPU here"):
        devices.build(WorkersConfig(device="nvidia"), tmp_path, session=session)
    session.close()


def test_the_search_for_layouts_is_shared_by_gpus_of_a_kind(tmp_path: Path) -> None:
    boards = [Board(f"GPU-{number}") for number in range(10)]
    found = built(tmp_path, "nvidia", *boards)
    assert all(len(device.shape().layouts) == 19 for device in found.values())
    assert {layout[0].device for layout in found["gpu7"].shape().layouts} == {"gpu7"}
    devices.close(found)


def test_reports_are_json(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    device = quarantined(rig)
    rig.board.put("1g.5gb", 6)
    run(device.reconcile())
    assert json.loads(json.dumps(device.report()))["foreign"] == ["gpu0:1g.5gb@6"]


@pytest.mark.parametrize(
    ("near", "cores"), [((1, 2, 70), (1, 2)), ((8, 9), (0, 1, 2, 3)), (None, (0, 1, 2, 3)), ((), (0, 1, 2, 3))]
)
def test_workers_run_on_cores_near_their_gpu_if_any_is(
    tmp_path: Path, near: tuple[int, ...] | None, cores: tuple[int, ...]
) -> None:
    board = Board(mig=None)
    board.near = near
    session = Nvml(FakeNvml(board))
    try:
        device = MigDevice.open(session, 0, tmp_path, cores=(0, 1, 2, 3))
        (placement,) = device.shape().layouts[0]
        assert device.cores(placement) == cores
        device.close()
    finally:
        session.close()
