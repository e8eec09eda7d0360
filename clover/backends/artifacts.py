"""Compiled artifacts: where they lie, what invalidates them, and how they come to be whole or not at all.

The folder of an artifact is named by a hash over everything that shaped it (`Recipe`): an artifact is therefore never
stale, only unused.  It is written into a temporary folder beside its place and renamed, under a lock that ends with its
holder, so that readers see all of it or nothing and two servers never compile the same thing twice.  What is for a GPU
lies in a folder for that GPU and profile, and is built while nothing else is built on that GPU: kernels are timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, Self

import msgspec

from clover import families, plugins
from clover.backends.environment import child_environment
from clover.backends.targets import CPU, Target
from clover.cache import check_private, make_private
from clover.errors import ConfigError, DeviceError, ProfileError
from clover.malformed import MALFORMED
from clover.process_clock import process_ns
from clover.types import FamilySpec, Record, SandboxOrder, VariantSpec

_log = logging.getLogger("clover.backends")

MANIFEST = "artifact.json"
COMPILE_S = 900.0
"""Seconds a compilation may take."""

_FORMAT = 2
_FORMAT_OF = {"tensorrt": 3}
_VERSION_OF = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-int8": "onnxruntime",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
    "openvino-int8": "openvino",
    "tensorrt": "torch-tensorrt",
}
_TENSORRT = ("tensorrt-cu13-libs", "tensorrt-cu12-libs", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")
_THREADS_AT_LOAD = set(_VERSION_OF) - {"tensorrt"}  # one artifact for any number of threads
_POLL_S = 0.02
_END_S = 2.0
"""Seconds that a compiling process is given to end those that it started; then its group is killed."""
_REASON_BYTES = 4000


class Recipe(Record, frozen=True, kw_only=True):
    """All that shapes an artifact.

    `variant` is a digest of its definition and weights, `structure` one without the weights.  The batch range is 1 ..
    `max_batch`.  `machine` (the CPU) and `threads` are empty if no code for the CPU is compiled; `gpu`, `profile`,
    `driver` and `tensorrt` where none for a GPU is.
    """

    variant: str
    structure: str
    backend: str
    backend_version: str
    torch: str
    python: str
    precision: str
    max_batch: int
    machine: str = ""
    threads: int = 0
    gpu: str = ""
    profile: str = ""
    driver: str = ""
    tensorrt: str = ""
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """A hash over all fields."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Manifest(Record, frozen=True, kw_only=True):
    """What a whole artifact says of itself, in `artifact.json`."""

    family: str
    variant: str
    recipe: Recipe


class Compiler(Protocol):
    """What `build` needs of a backend."""

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write the artifact into `folder`."""


class CpuBudget:
    """CPU seconds that several compilations have used (`used_s`) of `limit_s`, which none may exceed by itself, and the
    `clock_s` seconds from now on in which all of them have to end.

    Compiling is computing: where others keep the cores busy it takes several times as long by the clock, and the same
    CPU time.  Counted are the compiling process and its fork, in which the family's code and the backend run; programs
    that these start, as a C++ compiler, are not.
    """

    def __init__(self, limit_s: float, clock_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self.used_s = 0.0
        self._until_s = time.monotonic() + clock_s

    @property
    def left_s(self) -> float:
        """Seconds by the clock that are left, 0 or more."""
        return max(0.0, self._until_s - time.monotonic())

    @property
    def spent(self) -> bool:
        """Whether none is left for another compilation."""
        return self.used_s >= self.limit_s or self.left_s == 0.0


class CompileOrder(Record, frozen=True, kw_only=True):
    """The order that the compiling process reads; `sandbox` is how the family's code is confined in it (None: not at
    all)."""

    family: FamilySpec
    variant: str
    backend: str
    folder: str
    threads: int
    target: Target = CPU
    sandbox: SandboxOrder | None = None


@functools.cache
def _distribution_of(backend: str) -> str:
    """Return the package whose version says how a backend compiles."""
    return _VERSION_OF.get(backend) or next(iter(plugins.distributions("backends", backend)), "torch")


def package_version(name: str) -> str:
    """Return the version of an installed package without importing it; "" if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def tensorrt_version() -> str:
    """Return the version of TensorRT's libraries, by whatever name they are installed; "" if they are not."""
    return next((version for name in _TENSORRT if (version := package_version(name))), "")


@functools.cache
def machine_key() -> str:
    """Return architecture and instruction sets of this machine's CPU, and the limits that oneDNN and torch are set."""
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        wanted = [line.split(":", 1)[1] for line in file if line.startswith(("flags", "Features"))]
        flags = " ".join(sorted(wanted[0].split())) if wanted else ""
    limits = [
        f"{name}={os.environ[name]}" for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if name in os.environ
    ]
    return " ".join([platform.machine(), flags, *limits])


def lacks_bf16() -> str:
    """Return "" if this processor multiplies bfloat16 by instructions of its own, and may, else what it lacks."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(name in limit for name in ("BF16", "FP16", "AMX", "ALL", "DEFAULT")):
        return f"ONEDNN_MAX_CPU_ISA={limit} rules out instructions for bfloat16"
    if {"avx512_bf16", "amx_bf16"} & set(machine_key().split()):
        return ""
    return "this processor has no instructions for bfloat16 (AVX-512 BF16 or AMX)"


def recipe(
    family: FamilySpec,
    variant: VariantSpec,
    backend: str,
    threads: int,
    version: str | None = None,
    target: Target = CPU,
) -> Recipe:
    """Return what would shape an artifact made here and now, with the package versions that this process saw first.

    Raises ConfigError for TensorRT without a GPU, and DeviceError if the GPU's driver version is unknown.
    """
    if backend == "tensorrt" and not target.cuda:
        raise ConfigError("tensorrt has artifacts for the slices of a GPU only, none for CPU cores")
    if target.cuda and not target.driver and backend != "eager":
        raise DeviceError(
            "the NVIDIA driver's version cannot be read (/sys/module/nvidia/version, /proc/driver/nvidia/version), and "
            "what is compiled belongs to one: serve with --backends eager"
        )
    if backend in _THREADS_AT_LOAD:
        threads = 1
    compiles_for_cpu = backend != "tensorrt"
    return Recipe(
        variant=families.digest_of_variant(family, variant),
        structure=families.structure_of_variant(family, variant),
        backend=backend,
        backend_version=package_version(_distribution_of(backend)) if version is None else version,
        torch=package_version("torch"),
        python=platform.python_version(),
        precision=variant.precision,
        max_batch=family.max_batch,
        machine=machine_key() if compiles_for_cpu else "",
        threads=0 if target.cuda else threads,
        gpu=target.gpu,
        profile=target.profile,
        driver=target.driver,
        tensorrt=tensorrt_version() if backend == "tensorrt" else "",
        format=_FORMAT_OF.get(backend, _FORMAT),
    )


def artifact_dir(
    cache: str | Path,
    family: FamilySpec,
    variant: VariantSpec,
    backend: str,
    threads: int,
    version: str | None = None,
    target: Target = CPU,
) -> Path:
    """Return the folder of an artifact below `cache`; it need not exist.  For a GPU: .../BACKEND/GPU/PROFILE/..."""
    key = recipe(family, variant, backend, threads, version, target).key
    return Path(cache) / "artifacts" / backend / target.folder / f"{family.name}-{variant.name}-{key[:24]}"


def is_compiled(folder: str | Path) -> bool:
    """Return whether `folder` holds a whole artifact."""
    return (Path(folder) / MANIFEST).is_file()


def manifest_of(folder: str | Path) -> Manifest | None:
    """Return the manifest of the artifact in `folder`; None if it is not complete, or of another version."""
    try:
        return msgspec.json.decode((Path(folder) / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, *MALFORMED):
        return None


def gpu_lock(folder: str | Path, target: Target) -> Path:
    """Return the file whose lock one build on the GPU of `target` holds, whatever backend and profile it is for."""
    place = Path(folder)
    root = next((above for above in place.parents if above.name == "artifacts"), place.parent)
    return root / f"{target.uuid or target.gpu.replace('/', '-')}.lock"


def build(backend: Compiler, order: CompileOrder) -> None:
    """Have `backend` compile into `order.folder`, atomically; do nothing if it is there already.

    Raises what `backend` raises, and ProfileError if what it wrote is more than files and folders: a link would have
    whoever reads the artifact, or removes it, reach elsewhere.
    """
    folder = Path(order.folder)
    variant = order.family.variant(order.variant)
    make_private(folder.parent)
    check_private(folder)
    with contextlib.ExitStack() as held:
        held.enter_context(lock(folder.with_name(folder.name + ".lock")))
        if is_compiled(folder):
            return
        if order.target.cuda:  # always after the artifact's own lock: no two builds wait for each other
            held.enter_context(lock(gpu_lock(folder, order.target)))
        for left in folder.parent.glob(folder.name + ".tmp-*"):  # of a killed compilation; its lock is ours
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=folder.name + ".tmp-", dir=folder.parent))
        try:
            backend.compile(order.family, variant, made, order.threads, order.target)
            shaped = recipe(order.family, variant, order.backend, order.threads, None, order.target)
            manifest = Manifest(family=order.family.name, variant=variant.name, recipe=shaped)
            check_plain(made)
            with open(made / MANIFEST, "xb") as file:
                file.write(msgspec.json.encode(manifest))
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def check_plain(folder: Path) -> None:
    """Raise ProfileError if there is anything but files and folders below `folder`, or a manifest already."""
    for place, _, names in os.walk(folder):
        with os.scandir(place) as items:
            odd = [
                item.name
                for item in items
                if not (item.is_dir(follow_symlinks=False) or item.is_file(follow_symlinks=False))
            ]
        if odd:
            raise ProfileError(f"the artifact has {odd[0]}, which is neither a file nor a folder")
        if place == str(folder) and MANIFEST in names:
            raise ProfileError(f"the artifact has a {MANIFEST} of its own")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; it ends with this process at the latest."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def compile_in_background(
    family: FamilySpec,
    variant: VariantSpec,
    backend: str,
    folder: str | Path,
    threads: int = 1,
    *,
    target: Target = CPU,
    sandbox: SandboxOrder | None = None,
    budget: CpuBudget | None = None,
) -> None:
    """Compile an artifact in a process of its own, at low priority and at the expense of `budget`; do nothing if it is
    there already.

    The family's code is confined as `sandbox` says, but that it may start programs and write to the unfinished
    artifact.  Raises ProfileError with the reason.  The process and its compilers end with this one, however it dies;
    cancelling ends the compilation at once.
    """
    if is_compiled(folder):
        return
    order = CompileOrder(
        family=family,
        variant=variant.name,
        backend=backend,
        folder=str(folder),
        threads=threads,
        target=target,
        sandbox=sandbox,
    )
    timeout_s = COMPILE_S if budget is None else min(COMPILE_S, budget.left_s)
    with _Compilation(order, timeout_s, budget) as compilation:
        while not compilation.done():
            await asyncio.sleep(_POLL_S)


class _Compilation:
    """A compiling process; leaving the context ends its whole group."""

    def __init__(self, order: CompileOrder, timeout_s: float, budget: CpuBudget | None) -> None:
        where = f" for {order.target.profile}" if order.target.cuda else ""
        self._what = f"compiling {order.variant} with {order.backend}{where}"
        self._order = order
        self._timeout_s = timeout_s
        self._budget = budget
        self._used_s = 0.0
        self._used_ns: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._said = stack.enter_context(tempfile.TemporaryFile())
            self._reason = stack.enter_context(tempfile.TemporaryFile())
            self._process = self._start()
            stack.callback(self._end)
            self._until_s = time.monotonic() + self._timeout_s
            # stdin stays open until the process is done: its end tells the process that we are gone.
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died already; done() gives its reason
                self._process.stdin.write(msgspec.json.encode(self._order) + b"\n")
                self._process.stdin.flush()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # Not the shared, guessable folder torch takes in /tmp; and one a family, for what is in it is run.
        family = self._order.family
        whose = hashlib.sha256(f"{family.folder}\0{family.name}".encode()).hexdigest()[:24]
        caches = Path(self._order.folder).parent / "inductor" / whose
        for place in (caches.parent, caches):
            make_private(place)
            check_private(place)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "clover.worker.compiler"],
            stdin=subprocess.PIPE,
            stdout=self._reason,
            stderr=self._said,
            env=child_environment()
            | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(caches.absolute())},
            start_new_session=True,  # its compilers share its group, and end with it
        )

    def _end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends what it started, whatever session that is in, and itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def done(self) -> bool:
        """Return whether the artifact is there; raises ProfileError if it will not come."""
        self._charge()  # before the process is waited for, which ends its clock
        status = self._process.poll()
        if status is None:
            if time.monotonic() > self._until_s:
                raise ProfileError(f"{self._what} took more than {self._timeout_s:.0f} s")
            if self._budget is not None and self._used_s > self._budget.limit_s:
                raise ProfileError(f"{self._what} took more than {self._budget.limit_s:.0f} s of CPU time")
            return False
        if status or not is_compiled(self._order.folder):
            said = _tail(self._said)
            _log.debug("%s: %s", self._what, said)
            text = _tail(self._reason) or said.rpartition("\n")[2] or f"exit status {status}"
            raise ProfileError(f"{self._what} failed: {text}")
        return True

    def _charge(self) -> None:
        """Count what the compiling process and its children have used since the last call."""
        if self._budget is None:
            return
        for pid in (self._process.pid, *_children(self._process.pid)):
            used_ns = process_ns(pid)
            if used_ns is None:
                continue
            before_ns = self._used_ns.get(pid, 0)
            # One with less than before is another process, which was given the same number.
            used_s = (used_ns - before_ns if used_ns >= before_ns else used_ns) / 1e9
            self._used_ns[pid] = used_ns
            self._used_s += used_s
            self._budget.used_s += used_s


def _children(pid: int) -> list[int]:
    """Return the children that the main thread of `pid` started; none if it has ended, or the kernel lists none
    (CONFIG_PROC_CHILDREN): then the clock alone bounds a compilation."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]
    except OSError:
        return []


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _REASON_BYTES))
    return file.read().decode("utf-8", "replace").strip()
