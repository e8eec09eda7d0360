"""The emulated NVML through the unmodified bindings: devices, instances, processes, sessions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clover.devices import tables
from clover.emulation import emulated
from tests.support import disturb
from tests.support.nvml_child import Child

A100 = "a100-40gb"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "box.nvml"
    emulated.create_box(path, A100, 2)
    return path


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    first = tmp_path_factory.mktemp("first") / "box.nvml"
    emulated.create_box(first, A100, 1)
    with Child(first) as started:
        yield started


@pytest.fixture
def child(process: Child, box: Path) -> Child:
    return process.move(box)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_the_boards_say_what_they_are(child: Child) -> None:
    gpu = tables.table(A100)
    assert child("n.nvmlDeviceGetCount()") == 2
    assert child("n.nvmlDeviceGetName(gpu())") == gpu.product
    assert child("n.nvmlDeviceGetMemoryInfo(gpu()).total") == gpu.memory_mib << 20
    assert child("n.nvmlDeviceGetMemoryInfo(gpu(), n.nvmlMemory_v2).total") == gpu.memory_mib << 20
    assert child("n.nvmlDeviceGetArchitecture(gpu())") == 7
    assert child("n.nvmlDeviceGetMaxMigDeviceCount(gpu())") == gpu.compute_slices
    assert child("n.nvmlDeviceIsMigDeviceHandle(gpu()).value") == 0
    assert "emul" in child("n.nvmlSystemGetDriverVersion()")
    assert child("n.nvmlDeviceGetPciInfo(gpu(0)).busId") != child("n.nvmlDeviceGetPciInfo(gpu(1)).busId")
    assert child("n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(gpu(1)).busId))") == child(
        "n.nvmlDeviceGetUUID(gpu(1))"
    )


def test_profiles_are_those_of_the_table(child: Child) -> None:
    for row in tables.table(A100).profiles:
        child.run(f"info = n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), {row.enum})")
        assert child("[info.name, info.id, info.sliceCount, info.instanceCount, info.multiprocessorCount]") == [
            f"MIG {row.name}", row.profile_id, row.slices, row.most, row.sm,
        ]  # fmt: skip
        child.run(f"info = n.nvmlDeviceGetGpuInstanceProfileInfoById(gpu(), {row.profile_id})")
        assert child("info.memorySizeMB") == row.memory_mib
        assert child(f"possible(gpu(), '{row.name}')") == [[start, row.size] for start in row.starts]
        child.run(f"info = n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), {row.enum}, version=1)")
        assert child("info.copyEngineCount") == row.engines[0]


def test_unknown_profiles_are_skipped_and_the_end_is_told(child: Child) -> None:
    assert child.refused("n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), 5)") == "NOT_SUPPORTED"  # 8 slices
    assert child.refused("n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), 0x12)") == "INVALID_ARGUMENT"
    assert child.refused("gpu(2)") == "INVALID_ARGUMENT"
    assert child.refused("n.nvmlDeviceGetFanSpeed(gpu())") == "NOT_SUPPORTED"
    assert child.refused("n.nvmlDeviceGetHandleByUUID('GPU-00000000-0000-0000-0000-000000000000')") == "NOT_FOUND"


def test_old_structure_versions_are_refused(child: Child) -> None:
    child.run("info = n.c_nvmlGpuInstanceProfileInfo_v2_t(); info.version = 0x1000098")
    child.run("call = n._nvmlGetFunctionPointer('nvmlDeviceGetGpuInstanceProfileInfoV')")
    assert child("call(gpu(), 0, byref(info))") == 25  # ARGUMENT_VERSION_MISMATCH


# --- instances --------------------------------------------------------------------------------------------------------


def test_a_slice_is_a_device_of_its_own(child: Child) -> None:
    uuid = child("mig('3g.20gb', 4)")
    child.run(f"d = n.nvmlDeviceGetHandleByUUID('{uuid}')")
    assert uuid.startswith("MIG-")
    assert child("n.nvmlDeviceIsMigDeviceHandle(d).value") == 1
    assert child("n.nvmlDeviceGetName(d)") == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert child("[n.nvmlDeviceGetGpuInstanceId(d), n.nvmlDeviceGetComputeInstanceId(d)]") == [2, 0]
    assert child("n.nvmlDeviceGetMemoryInfo(d).total") == 19968 << 20
    child.run("a = n.nvmlDeviceGetAttributes(d)")
    assert child("[a.multiprocessorCount, a.gpuInstanceSliceCount, a.computeInstanceSliceCount, a.memorySizeMB]") == [
        42, 3, 3, 19968,
    ]  # fmt: skip
    child.run("parent = n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(d)")
    assert child("n.nvmlDeviceGetUUID(parent) == n.nvmlDeviceGetUUID(gpu())")
    assert child("n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0))") == uuid
    assert child.refused("n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 1)") == "NOT_FOUND"
    for what in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"):
        assert child.refused(f"n.{what}(d)") == "NOT_SUPPORTED"
    assert child.refused("n.nvmlDeviceGetAttributes(gpu())") == "NOT_SUPPORTED"


def test_uuids_are_of_their_place_and_of_their_board(child: Child) -> None:
    first = child("mig('3g.20gb', 4)")
    others = [child("mig('1g.5gb', 0)"), child("mig('3g.20gb', 4, 1)"), child("n.nvmlDeviceGetUUID(gpu(0))")]
    assert len({first, *others}) == 4
    child.run("destroy(0, 2)")
    assert child.refused(f"n.nvmlDeviceGetHandleByUUID('{first}')") == "NOT_FOUND"
    assert child("mig('3g.20gb', 4)") == first


def test_where_the_driver_places_order_matters(child: Child) -> None:
    child.run("for name in ('1g.5gb', '1g.5gb', '2g.10gb'): create(name)")
    assert child.refused("create('3g.20gb')") == "INSUFFICIENT_RESOURCES"
    assert [row[2] for row in child("instances()")] == [2, 5, 6]
    for name, start in (("1g.5gb", 0), ("1g.5gb", 1), ("2g.10gb", 2), ("3g.20gb", 4)):
        child.run(f"create('{name}', {start}, 1)")
    assert len(child("instances(1)")) == 4


def test_ids_follow_the_heap(child: Child) -> None:
    child.run("for name in ('1g.5gb', '2g.10gb', '4g.20gb'): create(name)")
    assert [row[0] for row in child("instances()")] == [1, 5, 13]


def test_an_impossible_place_is_not_a_taken_one(child: Child) -> None:
    child.run("create('3g.20gb', 4)")
    assert child.refused("create('3g.20gb', 2)") == "INVALID_ARGUMENT"
    assert child.refused("create('3g.20gb', 0, size=2)") == "INVALID_ARGUMENT"
    assert child.refused("n.nvmlDeviceCreateGpuInstance(gpu(), 77)") == "INVALID_ARGUMENT"
    assert child.refused("create('3g.20gb', 4)") == "INSUFFICIENT_RESOURCES"
    assert child.refused("create('2g.10gb', 4)") == "INSUFFICIENT_RESOURCES"
    assert child.refused("create('7g.40gb', 0)") == "INSUFFICIENT_RESOURCES"


def test_one_media_extension_a_board(child: Child) -> None:
    child.run("create('1g.5gb+me', 0)")
    assert child.refused("create('1g.5gb+me', 1)") == "INSUFFICIENT_RESOURCES"
    assert child("n.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu(), 20)") == 0
    assert child("n.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu(), 19)") == 6


def test_all_media_engines_leave_room_for_instances_without(process: Child, tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, "rtx-pro-6000-96gb", 1)
    child = process.move(box)
    child.run("create('1g.24gb+me.all', 0)")
    for name in ("1g.24gb", "1g.24gb+me", "2g.48gb+gfx", "2g.48gb+me.all"):
        assert child.refused(f"create('{name}', 6)") == "INSUFFICIENT_RESOURCES"
    child.run("create('2g.48gb-me', 6)")
    assert child("instances()") == [[2, 66, 6, 6], [3, 65, 0, 3]]


def test_compute_instances_share_a_gpu_instance(child: Child) -> None:
    child.run("g = create('7g.40gb', 0)")
    child.run("parts = [n.nvmlGpuInstanceCreateComputeInstance(g, i) for i in (0, 1)]")
    assert child("[n.nvmlComputeInstanceGetInfo(p).placement.start for p in parts]") == [0, 2]
    child.run("d = n.nvmlComputeInstanceGetInfo(parts[1]).device")
    assert child("n.nvmlDeviceGetName(d)") == "NVIDIA A100-SXM4-40GB MIG 2c.7g.40gb"
    assert child("n.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(g, 0)") == 4
    assert child.refused("n.nvmlGpuInstanceCreateComputeInstance(g, 4)") == "INSUFFICIENT_RESOURCES"
    child.run("p = n.c_nvmlComputeInstancePlacement_t(4, 3)")
    child.run("third = n.nvmlGpuInstanceCreateComputeInstanceWithPlacement(g, 2, byref(p))")
    assert child("n.nvmlComputeInstanceGetInfo(third).id") == 2
    child.run("p.start = 1")
    assert child.refused("n.nvmlGpuInstanceCreateComputeInstanceWithPlacement(g, 2, byref(p))") == "INVALID_ARGUMENT"
    child.run("h = create('3g.20gb', 4, 1)")
    assert child.refused("n.nvmlGpuInstanceCreateComputeInstance(h, 3)") == "INVALID_ARGUMENT"


def test_a_gpu_instance_goes_last(child: Child) -> None:
    child.run("g = create('2g.10gb', 0)")
    assert child.refused("n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)") == "NOT_FOUND"  # nothing to compute on yet
    assert len(child("instances()")) == 1
    child.run("c = whole(g)")
    assert child.refused("n.nvmlGpuInstanceDestroy(g)") == "IN_USE"
    child.run("n.nvmlComputeInstanceDestroy(c); n.nvmlGpuInstanceDestroy(g)")
    assert child("instances()") == []


def test_stale_handles_fail_even_where_a_new_instance_took_the_place(child: Child) -> None:
    child.run("g = create('2g.10gb', 0); c = whole(g); d = n.nvmlComputeInstanceGetInfo(c).device; destroy(0, 3)")
    stale = ("n.nvmlGpuInstanceGetInfo(g)", "n.nvmlComputeInstanceGetInfo(c)", "n.nvmlDeviceGetUUID(d)",
             "n.nvmlGpuInstanceDestroy(g)", "n.nvmlComputeInstanceDestroy(c)", "whole(g)")  # fmt: skip
    for make in ("None", "mig('2g.10gb', 0)"):
        child.run(make)
        for call in stale:
            assert child.refused(call) == "INVALID_ARGUMENT", (make, call)
    assert child.refused("n.nvmlDeviceGetName(n.c_nvmlDevice_t())") == "INVALID_ARGUMENT"
    assert child.refused("n.nvmlGpuInstanceGetInfo(gpu())") == "INVALID_ARGUMENT"


# --- mode and permission ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "waits"), [("a100-40gb", True), ("a30-24gb", True), ("h100-sxm-80gb", False)])
def test_the_mode_waits_for_a_reset_where_the_board_needs_one(
    process: Child, tmp_path: Path, name: str, waits: bool
) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, name, 2, mig_enabled=False)
    base = tables.slice_profiles(tables.table(name))[0].name
    child = process.move(box)
    assert child.refused("n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), 0)") == "NOT_SUPPORTED"
    assert child.refused("n.nvmlDeviceCreateGpuInstance(gpu(), 19)") == "NOT_SUPPORTED"
    assert child.refused("n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)") == "NOT_SUPPORTED"
    activation = child("n.nvmlDeviceSetMigMode(gpu(), 1)")
    assert (activation == 16) is waits  # RESET_REQUIRED
    assert child("n.nvmlDeviceGetMigMode(gpu())") == [0 if waits else 1, 1]
    disturb.reset(box, 0)
    assert child("n.nvmlDeviceGetMigMode(gpu())") == [1, 1]
    assert child("n.nvmlDeviceGetMigMode(gpu(1))") == [0, 0]
    child.run(f"mig('{base}')")
    disturb.reboot(box)
    # Ampere keeps its mode in the board's own memory, Hopper in the driver's, which a reboot empties.
    assert child("n.nvmlDeviceGetMigMode(gpu())") == ([1, 1] if waits else [0, 0])
    if waits:
        assert child("instances()") == []


def test_a_mode_is_not_changed_under_a_process(process: Child, tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, "h100-sxm-80gb", 1)
    child = process.move(box)
    child.run("a = attach(mig('2g.20gb'))")
    assert child("n.nvmlDeviceSetMigMode(gpu(), 0)") == 19  # IN_USE
    assert child("n.nvmlDeviceGetMigMode(gpu())") == [1, 0]
    child.run("a.close()")
    assert child("n.nvmlDeviceSetMigMode(gpu(), 0)") == 0
    assert child("n.nvmlDeviceGetMigMode(gpu())") == [0, 0]


def test_without_permission_one_may_look_at_devices_only(box: Path, child: Child) -> None:
    child.run("g = create('2g.10gb', 0); c = whole(g)")
    emulated.set_privileged(box, False)
    for call in ("create('1g.5gb', 2)", "create('1g.5gb')", "n.nvmlGpuInstanceDestroy(g)",
                 "n.nvmlComputeInstanceDestroy(c)", "whole(g)", "n.nvmlDeviceSetMigMode(gpu(), 0)",
                 "instances()", "possible(gpu(), '1g.5gb')", "n.nvmlDeviceGetGpuInstanceById(gpu(), 3)",
                 "n.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu(), 19)", "n.nvmlDeviceGetMemoryInfo(gpu())",
                 "n.nvmlDeviceGetMemoryInfo(gpu(), n.nvmlMemory_v2)", "n.nvmlDeviceGetBAR1MemoryInfo(gpu())",
                 "n.nvmlDeviceGetComputeRunningProcesses(gpu())", "n.nvmlDeviceGetGraphicsRunningProcesses(gpu())",
                 "n.nvmlGpuInstanceGetComputeInstancePossiblePlacements(g, 1, None, byref(c_uint()))"):  # fmt: skip
        assert child.refused(call) == "NO_PERMISSION", call
    child.run("m = n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)")
    assert child("n.nvmlDeviceGetUUID(m)").startswith("MIG-")
    assert child("n.nvmlDeviceGetName(m)") == "NVIDIA A100-SXM4-40GB MIG 2g.10gb"
    assert child("n.nvmlDeviceGetMemoryInfo(m).total") == 9851 << 20
    assert child("n.nvmlDeviceGetComputeRunningProcesses(m)") == []
    assert child("n.nvmlDeviceGetAttributes_v2(m).computeInstanceSliceCount") == 2
    assert child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") >= 0
    for call in ("n.nvmlDeviceGetPowerUsage(gpu())",
                 "n.nvmlDeviceGetMaxMigDeviceCount(gpu())", "n.nvmlDeviceGetMigMode(gpu())[0]"):  # fmt: skip
        assert child(call) >= 0, call
    emulated.set_privileged(box, True)
    child.run("destroy(0, 3)")


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_see_one_machine(box: Path, child: Child) -> None:
    uuid = child("mig('3g.20gb', 4)")
    with Child(box) as other:
        assert other("instances()") == [[2, 9, 4, 4]]
        other.run(f"a = attach('{uuid}'); a.use_memory(1 << 30)")
        assert child("processes(gpu())") == [[other.pid, 2, 0, 1 << 30]]
        assert child("processes(gpu(1))") == []
        assert child(f"processes(n.nvmlDeviceGetHandleByUUID('{uuid}'))") == [[other.pid, 2, 0, 1 << 30]]
        assert child("n.nvmlDeviceGetMemoryInfo(gpu()).used") == 1 << 30
        assert child.refused("destroy(0, 2)") == "IN_USE"
        other.run("a.close()")
        child.run("destroy(0, 2)")
        assert other("instances()") == []


def test_death_frees_a_slice_whatever_caused_it(box: Path, child: Child) -> None:
    uuid = child("mig('3g.20gb', 4)")
    other = Child(box)
    other.run(f"a, b = attach('{uuid}'), attach('{uuid}')")
    other.kill()
    assert child("processes(gpu())") == []
    child.run("destroy(0, 2)")


@pytest.mark.slow
def test_a_forked_child_does_not_keep_its_parents_slice(box: Path, child: Child) -> None:
    uuid = child("mig('3g.20gb', 4)")
    other = Child(box)
    forked = "r, w = os.pipe()\npid = os.fork()\nif pid == 0: os.write(w, b'x'), signal.pause()\nos.read(r, 1)"
    other.run(f"import signal\na = attach('{uuid}')\n{forked}")  # and the child has run: it closes what it inherited
    orphan = other("pid")
    try:
        assert child.refused("destroy(0, 2)") == "IN_USE"
        other.kill()
        child.run("destroy(0, 2)")
    finally:
        child.run(f"os.kill({orphan}, 9)")


def test_one_attaches_to_what_exists(tmp_path: Path, child: Child) -> None:
    assert "NOT_FOUND" in child.refused("attach('MIG-00000000-0000-0000-0000-000000000000')")
    assert "NOT_SUPPORTED" in child.refused("attach(n.nvmlDeviceGetUUID(gpu()))")  # a partitioned board, as a whole
    child.run("a = attach(mig('1g.5gb'))")
    assert "MEMORY" in child.refused("a.use_memory(5 << 30)")
    plain = tmp_path / "plain.nvml"
    emulated.create_box(plain, A100, 1, mig_enabled=False)
    child.move(plain)
    child.run("a = attach(n.nvmlDeviceGetUUID(gpu()))")
    assert child("processes(gpu())") == [[child.pid, 0xFFFFFFFF, 0xFFFFFFFF, 0]]


def test_more_processes_than_a_board_takes_are_refused(child: Child) -> None:
    uuid = child("mig('1g.5gb')")
    child.run(f"all = [attach('{uuid}') for _ in range(64)]")
    assert "INSUFFICIENT_RESOURCES" in child.refused(f"attach('{uuid}')")
    child.run("all.pop().close()")
    child.run(f"all.append(attach('{uuid}'))")


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_calls_belong_to_a_session(child: Child) -> None:
    child.run("d = gpu(); n.nvmlInit(); n.nvmlShutdown()")
    assert child("n.nvmlDeviceGetName(d)") == "NVIDIA A100-SXM4-40GB"  # the first session is still open
    child.run("n.nvmlShutdown()")
    for call in ("n.nvmlDeviceGetName(d)", "n.nvmlDeviceGetCount()", "n.nvmlShutdown()", "n.nvmlDeviceGetFanSpeed(d)"):
        assert child.refused(call) == "UNINITIALIZED", call
    child.run("n.nvmlInit()")
    assert child("n.nvmlDeviceGetCount()") == 2


@pytest.mark.parametrize("wrong", ["unset", "missing", "text", "short", "version", "table"])
def test_a_wrong_state_file_is_no_driver(tmp_path: Path, box: Path, wrong: str) -> None:
    path = tmp_path / "wrong.nvml"
    content = bytearray(box.read_bytes())
    if wrong == "version":
        content[8] += 1
    elif wrong == "table":
        content[12] = 77  # GPUs
    elif wrong == "short":
        content = content[:100]
    elif wrong == "text":
        content = bytearray(b"x" * 8192)
    if wrong not in ("unset", "missing"):
        path.write_bytes(content)
    with Child(None) as child:
        child.run("import ctypes; ctypes.CDLL(str(emulated.library()))")
        if wrong != "unset":
            child.run(f"os.environ['CLOVER_NVML_STATE'] = '{path}'")
        expected = "LIB_RM_VERSION_MISMATCH" if wrong == "version" else "DRIVER_NOT_LOADED"
        assert child.refused("n.nvmlInit()") == expected
        child.run(f"os.environ['CLOVER_NVML_STATE'] = '{box}'")  # and can be put right
        child.run("n.nvmlInit()")
        assert child("n.nvmlDeviceGetCount()") == 2


def test_a_copied_file_is_a_machine_of_its_own(tmp_path: Path, box: Path, child: Child) -> None:
    child.run("create('3g.20gb', 4)")
    copy = tmp_path / "copy.nvml"
    shutil.copy(box, copy)
    with Child(copy) as other:
        other.run("destroy(0, 2)")
    assert len(child("instances()")) == 1
