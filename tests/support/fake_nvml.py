"""NVML as a Python object: the bindings' names over GPUs that are only books, and refuse when told to.

Structures, error classes and constants are the real bindings'.  The rules of placement are not the point here (the
emulator has them); overlap, caps of one kind and the order of destruction are enough to drive what Clover does.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pynvml

# (name, profile id, compute slices, memory slices, starts, most, memory MiB) by NVML's enumeration, as of an A100-40GB.
A100: dict[int, tuple[str, int, int, int, tuple[int, ...], int, int]] = {
    0: ("MIG 1g.5gb", 19, 1, 1, (0, 1, 2, 3, 4, 5, 6), 7, 4864),
    1: ("MIG 2g.10gb", 14, 2, 2, (0, 2, 4), 3, 9856),
    2: ("MIG 3g.20gb", 9, 3, 4, (0, 4), 2, 19968),
    3: ("MIG 4g.20gb", 5, 4, 4, (0,), 1, 19968),
    4: ("MIG 7g.40gb", 0, 7, 8, (0,), 1, 40192),
    7: ("MIG 1g.5gb+me", 20, 1, 1, (0, 1, 2, 3, 4, 5, 6), 1, 4864),
    9: ("MIG 1g.10gb", 15, 1, 2, (0, 2, 4, 6), 4, 9856),
}
COMPUTE = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7}


class Died(BaseException):
    """The process ends here: nothing catches it."""


class Board:
    """One GPU.  `mig` None: it cannot be cut.  `standing`: [profile id, start, size, compute slices] by id.  Without
    `privileged` the calls that nvml.h keeps for privileged users are refused."""

    def __init__(self, uuid: str = "GPU-a", *, mig: bool | None = True, last: int = 0x11) -> None:
        self.uuid = uuid
        self.mig = mig
        self.pending = mig
        self.last = last
        self.table = dict(A100)
        self.lost = False
        self.near: tuple[int, ...] | None = None
        self.compute_mode = 0
        self.privileged = True
        self.standing: dict[int, list[Any]] = {}
        self.holders: dict[int, list[int]] = {}

    def put(self, name: str, start: int, *, complete: bool = True, cut: int = 0) -> int:
        """Somebody makes an instance; `cut`: with a compute instance of only so many slices."""
        row = next(row for row in self.table.values() if row[0] == f"MIG {name}")
        if any(start < s + size and s < start + row[3] for _, s, size, _ in self.standing.values()):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
        gi = next(number for number in range(1, 99) if number not in self.standing)
        self.standing[gi] = [row[1], start, row[3], (cut or row[2]) if complete else 0]
        return gi

    @property
    def names(self) -> list[tuple[str, int, bool]]:
        """What stands, as (profile, start, has a compute instance)."""
        rows = {row[1]: row[0].removeprefix("MIG ") for row in A100.values()}
        return sorted((rows[kind], start, bool(part)) for kind, start, _, part in self.standing.values())


class FakeNvml:
    """Stands in for the module pynvml.  `faults[symbol]` is a list of codes for its next calls (0: none).

    `dies` counts down the calls until the process dies, before that call does anything, or `after` it did.
    """

    c_nvmlGpuInstance_t = ctypes.c_uint64
    c_nvmlComputeInstance_t = ctypes.c_uint64

    def __init__(self, *boards: Board) -> None:
        self.boards = boards or (Board(),)
        self.faults: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.asked: list[str] = []
        """Instances whose processes were asked for: a real driver would count that as a use of them."""
        self.dies = -1
        self.after = False

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            return object.__getattribute__(self, name)
        real = object.__getattribute__(self, name)

        def called(*arguments: Any) -> Any:
            self.calls.append(name)
            left = self.faults.get(name)
            code = left.pop(0) if left else 0
            if self.dies == 0:
                raise Died  # the process is dead: none of its threads calls anything more
            self.dies -= self.dies > 0
            dying = self.dies == 0
            if dying and not self.after:
                raise Died
            try:
                if code:
                    raise pynvml.NVMLError(code)
                return real(*arguments)
            finally:
                if dying:
                    raise Died

        return called

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml"):
            raise AttributeError(f"the fake has no {name}")
        return getattr(pynvml, name)

    def _board(self, handle: Any, *, privileged: bool = False) -> Board:
        board: Board = self.boards[handle]
        if board.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if privileged and board.mig and not board.privileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return board

    def _device(self, device: str) -> tuple[Board, tuple[str, int, int, int, tuple[int, ...], int, int], list[Any]]:
        """The board, the row of the profile and what stands, of a MIG device."""
        uuid, _, gi = device.removeprefix("MIG-").rpartition("-")
        board, _, item = self._instance(next(i for i, b in enumerate(self.boards) if b.uuid == uuid) * 1000 + int(gi))
        return board, next(row for row in A100.values() if row[1] == item[0]), item

    def _instance(self, handle: int) -> tuple[Board, int, list[Any]]:
        board = self._board(handle // 1000)
        gi = handle % 1000
        if gi not in board.standing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return board, gi, board.standing[gi]

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000

    def nvmlDeviceGetCpuAffinity(self, handle: Any, words: int) -> Any:
        near = self._board(handle).near
        if near is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        mask = (ctypes.c_ulong * words)()
        for core in near:
            mask[core // 64] |= 1 << core % 64
        return mask

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetArchitecture(self, handle: Any) -> int:
        self._board(handle)
        return 7

    def nvmlDeviceGetCount(self) -> int:
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.boards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._board(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        index = next(index for index, board in enumerate(self.boards) if board.uuid == uuid)
        self._board(index)
        return index

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        if isinstance(handle, str):
            return handle
        return self._board(handle).uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:
        if isinstance(handle, str):
            _, row, item = self._device(handle)
            part = f"{item[3]}c." if item[3] < row[2] else ""
            return f"NVIDIA A100-SXM4-40GB MIG {part}{row[0].removeprefix('MIG ')}"
        self._board(handle)
        return "NVIDIA A100-SXM4-40GB"

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        self._board(handle)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: int) -> str:
        board = self._board(handle)
        found = [f"MIG-{board.uuid}-{gi}" for gi, item in sorted(board.standing.items()) if item[3]]
        if number >= len(found):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found[number]

    def nvmlDeviceGetAttributes_v2(self, device: str) -> Any:
        _, row, item = self._device(device)
        return SimpleNamespace(gpuInstanceSliceCount=row[2], computeInstanceSliceCount=item[3], memorySizeMB=row[6])

    def nvmlDeviceGetGpuInstanceId(self, device: str) -> int:
        return int(device.rpartition("-")[2])

    def nvmlDeviceGetMinorNumber(self, handle: Any) -> int:
        self._board(handle)
        return int(handle)

    def nvmlDeviceGetGpuInstanceRemainingCapacity(self, handle: Any, kind: int) -> int:
        self._board(handle, privileged=True)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        self._board(handle, privileged=True)
        return SimpleNamespace(total=40960 << 20)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._board(handle)
        return 50_000

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        board = self._board(handle)
        if board.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(board.mig), int(bool(board.pending))]

    def nvmlDeviceGetGpuInstanceProfileInfo(self, handle: Any, number: int) -> Any:
        if number > self._board(handle).last:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        table = self._board(handle).table
        if number not in table:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        name, kind, slices, _, _, most, memory = table[number]
        return SimpleNamespace(id=kind, name=name.encode(), sliceCount=slices, instanceCount=most, memorySizeMB=memory)

    def nvmlDeviceGetGpuInstancePossiblePlacements(self, handle: Any, kind: int, places: Any, count: Any) -> None:
        row = next(row for row in self._board(handle, privileged=True).table.values() if row[1] == kind)
        count._obj.value = len(row[4])
        for index, start in enumerate(row[4] if places is not None else ()):
            places[index].start, places[index].size = start, row[3]

    def nvmlDeviceGetGpuInstances(self, handle: Any, kind: int, found: Any, count: Any) -> int:
        board = self._board(handle, privileged=True)
        ids = [gi for gi, item in board.standing.items() if item[0] == kind]
        for index, gi in enumerate(ids):
            found[index] = handle * 1000 + gi
        count._obj.value = len(ids)
        return 0

    def nvmlDeviceGetGpuInstanceById(self, handle: Any, gi: int) -> int:
        self._board(handle, privileged=True)
        self._instance(handle * 1000 + gi)
        return int(handle * 1000 + gi)

    def nvmlGpuInstanceGetInfo(self, handle: int) -> Any:
        _, gi, (kind, start, size, _) = self._instance(handle)
        return SimpleNamespace(id=gi, profileId=kind, placement=SimpleNamespace(start=start, size=size))

    def nvmlDeviceCreateGpuInstanceWithPlacement(self, handle: Any, kind: int, place: Any) -> int:
        board = self._board(handle, privileged=True)
        name = next(row[0] for row in A100.values() if row[1] == kind).removeprefix("MIG ")
        assert place._obj.size == next(row[3] for row in A100.values() if row[1] == kind)
        return int(handle * 1000 + board.put(name, place._obj.start, complete=False))

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(self, handle: int, number: int, engine: int) -> Any:
        _, _, (kind, *_) = self._instance(handle)
        most = next(row[2] for row in A100.values() if row[1] == kind)
        if number not in COMPUTE or COMPUTE[number] > most:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(id=number, sliceCount=COMPUTE[number], instanceCount=most // COMPUTE[number])

    def nvmlGpuInstanceGetComputeInstances(self, handle: int, kind: int, found: Any, count: Any) -> int:
        _, _, (_, _, _, part) = self._instance(handle)
        count._obj.value = int(part == COMPUTE[kind])
        if part == COMPUTE[kind]:
            found[0] = handle
        return 0

    def nvmlGpuInstanceCreateComputeInstance(self, handle: int, kind: int) -> int:
        _, _, item = self._instance(handle)
        if item[3]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
        item[3] = COMPUTE[kind]
        return handle

    def nvmlComputeInstanceGetInfo_v2(self, handle: int) -> Any:
        board, gi, _ = self._instance(handle)
        return SimpleNamespace(device=f"MIG-{board.uuid}-{gi}")

    def nvmlComputeInstanceDestroy(self, handle: int) -> None:
        board, gi, item = self._instance(handle)
        if board.holders.get(gi):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)
        item[3] = 0

    def nvmlGpuInstanceDestroy(self, handle: int) -> None:
        board, gi, item = self._instance(handle)
        if item[3]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)
        del board.standing[gi]

    def nvmlEventSetCreate(self) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetComputeMode(self, handle: Any) -> int:
        return int(self._board(handle).compute_mode)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> Any:
        if isinstance(handle, str):
            self.asked.append(handle)
            uuid, _, gi = handle.removeprefix("MIG-").rpartition("-")
            board = next(board for board in self.boards if board.uuid == uuid)
            return [SimpleNamespace(pid=pid, gpuInstanceId=int(gi)) for pid in board.holders.get(int(gi), ())]
        holders = self._board(handle).holders
        return [SimpleNamespace(pid=pid, gpuInstanceId=gi) for gi, pids in holders.items() for pid in pids]
