"""A process that uses an emulated box through the unmodified bindings, driven line by line from a test.

    child = Child(box)
    child("gpu(0)")                          evaluates in the child and returns the result as JSON would have it
    child.refused("n.nvmlDeviceGetName(0)")  the name of the NVML error it raises
    child.run("x = gpu(1)")                  statements; names stay

A process has one NVML for life, so nothing of this may happen in the process that runs the tests.  The child knows the
names below: `n` (pynvml), `gpu`, `create`, `destroy`, `mig`, `attach` and what the test defined.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """The process; a context manager that ends it."""

    def __init__(self, box: Path | None) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "CLOVER_NVML_STATE"}
        arguments = [sys.executable, "-m", "tests.support.nvml_child", *([str(box)] if box else [])]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, code: str, how: str = "eval") -> None:
        """Send without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([how, code]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, Any]:
        """("value", result) or ("refused", name of the error)."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child died with {self.process.wait()}"
        kind, value = json.loads(line)
        return kind, value

    def ask(self, code: str, how: str = "eval") -> tuple[str, Any]:
        self.tell(code, how)
        return self.answer()

    def __call__(self, code: str) -> Any:
        kind, value = self.ask(code)
        assert kind == "value", f"{code}: {value}"
        return value

    def run(self, code: str) -> None:
        kind, value = self.ask(code, "exec")
        assert kind == "value", f"{code}: {value}"

    def refused(self, code: str) -> str:
        kind, value = self.ask(code)
        assert kind == "refused", f"{code} gave {value}"
        return str(value)

    def move(self, box: Path) -> Child:
        """To another box, as a process would start there: starting one costs half a second."""
        self.run(f"move('{box}')")
        return self

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def serve(box: str) -> None:
    from ctypes import byref, c_uint

    import pynvml as n

    from clover.emulation import emulated
    from clover.errors import DeviceError

    if box:
        emulated.use_box(Path(box))
        n.nvmlInit()

    made: list[emulated.Attachment] = []

    def gpu(index: int = 0) -> Any:
        return n.nvmlDeviceGetHandleByIndex(index)

    def profile_id(device: Any, name: str) -> int:
        for index in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                info = n.nvmlDeviceGetGpuInstanceProfileInfo(device, index)
            except n.NVMLError_NotSupported:
                continue
            if info.name == f"MIG {name}":
                return int(info.id)
        raise KeyError(name)

    def possible(device: Any, name: str) -> list[list[int]]:
        identity, count = profile_id(device, name), c_uint()
        n.nvmlDeviceGetGpuInstancePossiblePlacements(device, identity, None, byref(count))
        places = (n.c_nvmlGpuInstancePlacement_t * count.value)()
        n.nvmlDeviceGetGpuInstancePossiblePlacements(device, identity, places, byref(count))
        return [[place.start, place.size] for place in places]

    def create(name: str, start: int | None = None, index: int = 0, size: int | None = None) -> Any:
        """A GPU instance: where the driver likes, or at `start`."""
        device = gpu(index)
        identity = profile_id(device, name)
        if start is None:
            return n.nvmlDeviceCreateGpuInstance(device, identity)
        place = n.c_nvmlGpuInstancePlacement_t(start, possible(device, name)[0][1] if size is None else size)
        return n.nvmlDeviceCreateGpuInstanceWithPlacement(device, identity, byref(place))

    def instances(index: int = 0) -> list[list[int]]:
        """[id, profile id, start, size] of every GPU instance, found as a reconciler would."""
        device, found = gpu(index), []
        for constant in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                info = n.nvmlDeviceGetGpuInstanceProfileInfo(device, constant)
            except n.NVMLError_NotSupported:
                continue
            handles, count = (n.c_nvmlGpuInstance_t * info.instanceCount)(), c_uint()
            n.nvmlDeviceGetGpuInstances(device, info.id, handles, byref(count))
            for handle in handles[: count.value]:
                about = n.nvmlGpuInstanceGetInfo(handle)
                found.append([about.id, about.profileId, about.placement.start, about.placement.size])
        return sorted(found)

    def whole(instance: Any) -> Any:
        """The compute instance that takes all of a GPU instance."""
        identity = n.nvmlGpuInstanceGetInfo(instance)
        slices = n.nvmlDeviceGetGpuInstanceProfileInfoById(identity.device, identity.profileId).sliceCount
        for constant in range(n.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                info = n.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, constant, 0)
            except n.NVMLError_NotSupported:
                continue
            if info.sliceCount == slices:
                return n.nvmlGpuInstanceCreateComputeInstance(instance, info.id)
        raise AssertionError("no whole compute instance")

    def mig(name: str, start: int | None = None, index: int = 0) -> str:
        """A GPU instance with a compute instance; its UUID."""
        inner = whole(create(name, start, index))
        return str(n.nvmlDeviceGetUUID(n.nvmlComputeInstanceGetInfo(inner).device))

    def destroy(index: int, identity: int) -> None:
        """The GPU instance of that id, with whatever is in it."""
        instance = n.nvmlDeviceGetGpuInstanceById(gpu(index), identity)
        for number in range(8):
            try:
                inner = n.nvmlGpuInstanceGetComputeInstanceById(instance, number)
            except n.NVMLError_NotFound:
                continue
            n.nvmlComputeInstanceDestroy(inner)
        n.nvmlGpuInstanceDestroy(instance)

    def attach(uuid: str) -> emulated.Attachment:
        made.append(emulated.Attachment(str(emulated.library()), os.environ[emulated.STATE], uuid))
        return made[-1]

    def move(path: str) -> None:
        while made:
            made.pop().close()
        with contextlib.suppress(n.NVMLError_Uninitialized):
            while True:
                n.nvmlShutdown()
        os.environ[emulated.STATE] = path
        n.nvmlInit()

    def processes(device: Any) -> list[list[int]]:
        found = n.nvmlDeviceGetComputeRunningProcesses(device)
        return [[item.pid, item.gpuInstanceId, item.computeInstanceId, item.usedGpuMemory] for item in found]

    def outcome(act: Any) -> str:
        try:
            act()
        except n.NVMLError as error:
            return error_name(error)
        return "SUCCESS"

    def error_name(error: Any) -> str:
        name: str = next(name for name in vars(n) if name.startswith("NVML_ERROR_") and getattr(n, name) == error.value)
        return name.removeprefix("NVML_ERROR_")

    def walk(steps: list[list[Any]]) -> list[str]:
        """Create ["+", profile, start] or destroy ["-", instance id] one after the other; what came of each."""
        return [
            outcome(lambda step=step: create(step[1], step[2]) if step[0] == "+" else destroy(0, step[1]))
            for step in steps
        ]

    def enumerate_all(names: list[str]) -> list[list[list[Any]]]:
        """Every set of instances that can be made, as sorted [profile, start]."""
        options = [(name, start) for name in names for start, _ in possible(gpu(), name)]
        found: list[list[list[Any]]] = []

        def go(first: int, chosen: list[list[Any]]) -> None:
            for position in range(first, len(options)):
                name, start = options[position]
                try:
                    made = create(name, start)
                except n.NVMLError_InsufficientResources:
                    continue
                found.append(sorted([*chosen, [name, start]]))
                go(position + 1, [*chosen, [name, start]])
                n.nvmlGpuInstanceDestroy(made)

        go(0, [])
        return found

    names = {**locals(), "byref": byref, "c_uint": c_uint, "os": os, "Path": Path}
    for line in sys.stdin:
        how, code = json.loads(line)
        try:
            value = None
            if how == "eval":
                value = eval(code, names)
            else:
                exec(code, names)
            answer = ["value", value]
            json.dumps(answer)
        except n.NVMLError as error:
            answer = ["refused", error_name(error)]
        except DeviceError as error:
            answer = ["refused", str(error)]
        except TypeError as error:
            if "JSON" not in str(error):
                raise
            answer = ["value", None]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "")
