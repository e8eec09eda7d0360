"""GPUs whose instances this process may use and not change: a pod, a Slurm job, a user without privileges."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from clover import devices
from clover.config import WorkersConfig
from clover.devices import nvml
from clover.devices.fixed import NAMED, NOT_PERMITTED
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.types import Placement
from tests.support.fake_nvml import A100, Board, FakeNvml

CHANGES = {
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
    "nvmlDeviceSetMigMode",
}


class Pod:
    """GPUs of which an administrator made instances, and a user who may not change them."""

    def __init__(self, folder: Path, *boards: Board) -> None:
        self.folder = folder
        self.fake = FakeNvml(*boards)
        self.board = self.fake.boards[0]
        self._opened: list[dict[str, Any]] = []

    def open(self, device: str = "nvidia", **options: Any) -> dict[str, MigDevice]:
        found = devices.build(WorkersConfig(device=device), self.folder, session=Nvml(self.fake), **options)
        self._opened.append(found)
        return found  # type: ignore[return-value]

    def close(self) -> None:
        for found in self._opened:
            devices.close(found)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    board = Board()
    board.put("2g.10gb", 0)
    board.put("1g.5gb", 4)
    board.put("1g.5gb", 6)
    board.privileged = False
    found = Pod(tmp_path, board)
    yield found
    found.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def at(profile: str, start: int, size: int = 1) -> Placement:
    return Placement(device="gpu0", profile=profile, start=start, size=size)


STANDING = (at("2g.10gb", 0, 2), at("1g.5gb", 2), at("1g.5gb", 3))


def test_what_is_seen_is_the_only_layout(pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    device = pod.open()["gpu0"]
    shape = device.shape()
    assert shape.layouts == (STANDING,)
    assert (shape.kind, shape.slices, shape.label) == ("mig", 4, "NVIDIA A100-SXM4-40GB, MIG, fixed instances")
    assert device.instances() == STANDING
    assert [device.visible(place) for place in STANDING] == ["MIG-GPU-a-1", "MIG-GPU-a-2", "MIG-GPU-a-3"]
    assert device.memory_bytes(STANDING[0]) == 9856 << 20
    assert (device.others, device.report()["fixed"]) == (3, NOT_PERMITTED)
    assert device.report()["foreign"] == ["3 of 7 compute slices, which this process does not see"]
    assert "fixed: not permitted to change instances" in caplog.text
    assert "4 of 7 compute slices" in caplog.text


def test_nothing_is_ever_changed(pod: Pod) -> None:
    device = pod.open()["gpu0"]
    before = pod.board.names
    for place in STANDING:
        run(device.create(place))
        run(device.destroy(place))
    device.bar(STANDING[0], "it failed")
    assert run(device.reconcile()) == ()
    assert run(device.retry_quarantined()) == ()
    with pytest.raises(DeviceError, match="cannot be claimed"):
        run(device.claim(STANDING[0]))
    with pytest.raises(DeviceError, match="does not exist on gpu0"):
        run(device.create(at("7g.40gb", 0, 8)))
    assert run(device.poll())
    assert device.shape().layouts == (STANDING,)
    assert pod.board.names == before
    assert not CHANGES & set(pod.fake.calls)


def test_an_error_of_an_instance_leaves_it_in_use(pod: Pod) -> None:
    device = pod.open()["gpu0"]
    for number in (94, 48):
        device.take_xid(number, 1)
    assert device.shape().layouts == (STANDING,)
    assert run(device.retry_quarantined()) == ()
    report = device.report()
    assert (report["quarantined"], len(report["errors"])) == ([], 2)


@pytest.mark.parametrize(
    "symbol",
    [
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetGpuInstancePossiblePlacements",
        "nvmlDeviceGetGpuInstances",
        "nvmlDeviceGetGpuInstanceRemainingCapacity",
    ],
)
def test_any_one_of_the_privileged_calls_may_be_what_is_refused(pod: Pod, symbol: str) -> None:
    pod.board.privileged = True
    pod.fake.faults[symbol] = [nvml.NO_PERMISSION]
    device = pod.open()["gpu0"]
    if symbol == "nvmlDeviceGetMemoryInfo":
        assert not device.fixed, "a total that is not told is no reason not to change instances"
        return
    assert device.instances() == STANDING
    assert device.fixed == NOT_PERMITTED


def test_a_part_of_an_instance_counts_its_part(tmp_path: Path) -> None:
    board = Board()
    board.put("3g.20gb", 0, cut=1)
    board.put("1g.5gb", 4, complete=False)
    board.privileged = False
    pod = Pod(tmp_path, board)
    device = pod.open()["gpu0"]
    (place,) = device.instances()
    assert (place.profile, place.slices, device.shape().slices, device.others) == ("1c.3g.20gb", 1, 1, 6)
    assert device.memory_bytes(place) == (19968 << 20) // 3
    pod.close()


def test_a_profile_without_a_name_is_named_by_its_attributes(pod: Pod) -> None:
    real = FakeNvml.nvmlDeviceGetName
    pod.fake.nvmlDeviceGetName = lambda handle: real(pod.fake, handle).partition(" MIG ")[0]
    assert [place.profile for place in pod.open()["gpu0"].instances()] == ["2g.10gb", "1g.5gb", "1g.5gb"]


def test_without_an_instance_there_is_nothing_to_serve_on(tmp_path: Path) -> None:
    board = Board()
    board.privileged = False
    with pytest.raises(DeviceError, match=r"^gpu0: not permitted .*nvidia\.com/mig-1g\.10gb"):
        Pod(tmp_path, board).open()


def test_an_instance_that_is_taken_away_leaves_the_layout(pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
    device = pod.open()["gpu0"]
    del pod.board.standing[2]
    assert run(device.poll())
    assert device.shape().layouts == ((STANDING[0], STANDING[2]),)
    assert caplog.text.count("gpu0:1g.5gb@2 was taken away from this process") == 1
    with pytest.raises(DeviceError, match="was taken away and cannot be made again"):
        run(device.create(STANDING[1]))
    with pytest.raises(DeviceError, match="does not stand"):
        device.visible(STANDING[1])
    pod.board.standing.clear()
    assert run(device.poll())
    assert device.shape().layouts == ()


def test_a_lost_gpu_comes_back_with_what_still_stands(pod: Pod) -> None:
    device = pod.open()["gpu0"]
    pod.board.lost = True
    assert not run(device.poll())
    assert device.shape().layouts == ()
    with pytest.raises(DeviceLost):
        run(device.create(STANDING[0]))
    pod.board.lost = False
    del pod.board.standing[1]
    assert run(device.poll())
    assert device.instances() == STANDING[1:]


def test_an_instance_serves_one_server(pod: Pod) -> None:
    pod.open("mig:MIG-GPU-a-1")
    with pytest.raises(DeviceError, match="another Clover holds MIG-GPU-a-1"):
        pod.open()
    assert pod.open("mig:MIG-GPU-a-3")["gpu0"].instances() == (at("1g.5gb", 0),)
    assert len(pod.open(exclusive=False)["gpu0"].instances()) == 3, "looking is always allowed"


def test_named_instances_are_used_and_no_others(tmp_path: Path) -> None:
    boards = [Board("GPU-a"), Board("GPU-b", mig=None), Board("GPU-c")]
    for board in (boards[0], boards[2]):
        board.put("1g.5gb", 0)
        board.put("1g.5gb", 1)
    pod = Pod(tmp_path, *boards)
    found = pod.open("mig:MIG-GPU-a-2,MIG-GPU-c-1")
    assert {name: [device.visible(place) for place in device.instances()] for name, device in found.items()} == {
        "gpu0": ["MIG-GPU-a-2"],
        "gpu2": ["MIG-GPU-c-1"],
    }
    assert {device.fixed for device in found.values()} == {NAMED}, "whoever is root does not change them either"
    run(found["gpu0"].destroy(at("1g.5gb", 0)))
    assert not CHANGES & set(pod.fake.calls)
    for text, words in {
        "mig:MIG-GPU-x": "MIG-GPU-x names one MIG instance of this machine, and is none of them",
        "mig:MIG-GPU-a": "fits 2 of them",
        "mig:GPU-a": "with UUIDs of MIG instances",
        "mig": "with UUIDs of MIG instances",
        "mig:MIG-GPU-a-1,MIG-GPU-a-1": "names an instance twice",
    }.items():
        with pytest.raises(ConfigError, match=words):
            pod.open(text)
    pod.close()


def test_a_scheduler_assigns_instances_by_the_environment(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-a-3,MIG-GPU-a-1")
    monkeypatch.setattr("clover.devices.nvidia.Nvml", lambda: Nvml(pod.fake))
    found = devices.build(WorkersConfig(device="nvidia"), tmp_path)
    (device,) = found.values()
    assert isinstance(device, MigDevice)
    assert [device.visible(place) for place in device.instances()] == ["MIG-GPU-a-1", "MIG-GPU-a-3"]
    assert device.fixed == NAMED
    devices.close(found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-a-3,0")
    with pytest.raises(ConfigError, match="name those to use by their numbers"):
        devices.build(WorkersConfig(device="nvidia"), tmp_path)


def test_a_scheduler_assigns_gpus_by_their_uuids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeNvml(Board("GPU-a1"), Board("GPU-b2", mig=None), Board("GPU-b3", mig=None))
    monkeypatch.setattr("clover.devices.nvidia.Nvml", lambda: Nvml(fake))
    for visible, names in {"GPU-b3,GPU-a1": ["gpu0", "gpu2"], "GPU-b2": ["gpu1"], "GPU-a": ["gpu0"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = devices.build(WorkersConfig(device="nvidia"), tmp_path)
        assert list(found) == names
        devices.close(found)
    for visible, words in {
        "GPU-b": r"GPU-b names one GPU of this machine, and fits 2 of them \(GPU-b2, GPU-b3\)",
        "GPU-x": "and is none of them",
        "GPU-a1,MIG-GPU-a1-1": "name those to use by their numbers",
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(ConfigError, match=words):
            devices.build(WorkersConfig(device="nvidia"), tmp_path)


# --- MIG mode required ------------------------------------------------------------------------------------------------


def test_a_board_that_could_be_split_and_is_not_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pod = Pod(tmp_path, Board("GPU-a", mig=False), Board("GPU-b", mig=None), Board("GPU-c"))
    assert len(pod.open()) == 3
    warned = [record.getMessage() for record in caplog.records if "MIG mode is off" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("gpu0: ")
    assert "nvidia-smi -i 0 -mig 1" in warned[0]
    pod.close()


def test_mig_mode_is_required_where_it_is_asked_for(tmp_path: Path) -> None:
    pod = Pod(tmp_path, Board("GPU-a", mig=False), Board("GPU-b", mig=None), Board("GPU-c"))
    with pytest.raises(DeviceError, match="gpu0: MIG mode is off; turn it on with nvidia-smi -i 0 -mig 1"):
        pod.open("nvidia:mig")
    with pytest.raises(DeviceError, match="gpu1: NVIDIA A100-SXM4-40GB has no MIG"):
        pod.open("nvidia:mig:1,2")
    assert list(pod.open("nvidia:mig:2")) == ["gpu2"], "what was refused holds no lock"
    assert list(pod.open("nvidia:0,1")) == ["gpu0", "gpu1"]
    pod.close()


# --- drivers that know less or more -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [nvml.NOT_SUPPORTED, nvml.INVALID_ARGUMENT, nvml.NOT_FOUND])
def test_a_profile_that_is_listed_and_not_placed_is_left_out(tmp_path: Path, code: int) -> None:
    pod = Pod(tmp_path, Board())
    pod.fake.faults["nvmlDeviceGetGpuInstancePossiblePlacements"] = [0, 0, code]  # of the second profile
    profiles = [profile.name for profile in pod.open()["gpu0"].profiles()]
    assert profiles == [row[0].removeprefix("MIG ") for row in A100.values() if row[0] != "MIG 2g.10gb"]
    pod.close()


def test_a_gap_in_the_profiles_does_not_end_the_walk(tmp_path: Path) -> None:
    pod = Pod(tmp_path, Board())
    pod.fake.faults["nvmlDeviceGetGpuInstanceProfileInfo"] = [0, nvml.INVALID_ARGUMENT]
    assert [profile.name for profile in pod.open()["gpu0"].profiles()][:2] == ["1g.5gb", "3g.20gb"]
    pod.close()


def test_either_compute_instance_of_full_size_makes_an_instance_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1_SLICE_REV1 and 7_SLICE_NVL are as large as 1_SLICE and 7_SLICE."""
    pod = Pod(tmp_path, Board())
    pod.board.put("1g.5gb", 0)

    def profile_info(handle: int, number: int, engine: int) -> Any:
        if number in (0, 7):
            return pynvml.c_nvmlComputeInstanceProfileInfo_t(id=number, sliceCount=1, instanceCount=1)
        raise pynvml.NVMLError(nvml.INVALID_ARGUMENT)

    def instances(handle: int, kind: int, found: Any, count: Any) -> int:
        count._obj.value = int(kind == 7)
        found[0] = handle
        return 0

    pod.fake.nvmlGpuInstanceGetComputeInstanceProfileInfo = profile_info
    pod.fake.nvmlGpuInstanceGetComputeInstances = instances
    device = pod.open()["gpu0"]
    run(device.claim(at("1g.5gb", 0)))
    assert device.visible(at("1g.5gb", 0)) == "MIG-GPU-a-1"
    pod.close()


def test_a_board_without_memory_of_its_own_is_served_whole(tmp_path: Path) -> None:
    pod = Pod(tmp_path, Board(mig=None))
    pod.fake.faults["nvmlDeviceGetMemoryInfo"] = [nvml.NOT_SUPPORTED]
    device = pod.open()["gpu0"]
    assert device.memory_bytes(at("gpu", 0)) == 0
    pod.close()
