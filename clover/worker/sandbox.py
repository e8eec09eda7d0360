"""What a worker gives up before code of its family runs: files, sockets, other processes.

It keeps reading the system's libraries, Python with what is installed for it, its family's folder, its compiled
artifact, the published files that were fetched, and facts about the machine and itself; it writes nothing.  Sockets,
new processes, and calls that reach other processes or the machine are refused.  It has no capability, also where the
server is root, and cannot raise its priority.  What is open already (ring, slab, pipes, its devices) stays so.

`confine` uses what the kernel has (`clover.worker.landlock`, `clover.worker.seccomp`) and says what that was.  If it is
required it is all or nothing.  Code that was loaded before is Clover's and the libraries' own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from clover.cache import fetched_files
from clover.errors import WorkerError
from clover.types import SandboxOrder
from clover.worker import landlock, seccomp
from clover.worker.frames import WorkerOrder
from clover.worker.landlock import Rule

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store")
"""Libraries of the system."""
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone", "locale.alias"),
    *("nsswitch.conf", "passwd", "group", "hosts", "host.conf", "mime.types", "os-release", "fonts"),
    *("ssl/openssl.cnf", "ssl/certs", "pki/tls/openssl.cnf", "pki/tls/certs", "ca-certificates"),
)
"""What libraries read of /etc: nothing that is secret."""
_MACHINE = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/loadavg"),
    *("/proc/uptime", "/proc/sys", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
    *("/sys/bus/pci/devices", "/sys/class/drm"),
)
_NULL = ("/dev/null", "/dev/zero", "/dev/full")
_RANDOM = ("/dev/random", "/dev/urandom")
_GPU_FACTS = ("/sys", "/proc/devices", "/proc/modules", "/proc/driver", "/etc/nvidia", "/etc/OpenCL", "/usr/local/cuda")
_MODULES = (".py", ".pyc", ".so")
_BESIDE = (".libs", ".dist-info")
"""Ends of names of folders beside packages: the shared libraries of a wheel, as numpy.libs, and what it says of itself.
"""
_NO_LIBRARY = "cannot open shared object file"
"""What the loader says of a library that it may not read, as of one that is not there."""
_KEPT_FROM = (
    "the sandbox of workers keeps models from files, sockets and processes: "
    "workers.sandbox_read, sandbox_write and sandbox_processes allow some"
)

_PR_CAPBSET_DROP = 24
_CAPABILITIES_VERSION = 0x20080522


def missing() -> str:
    """Return what this kernel lacks for the whole of a sandbox; "" if nothing."""
    lacking = []
    if not landlock.abi():
        lacking.append("Landlock")
    if not seccomp.available():
        lacking.append("seccomp filters")
    return " and ".join(lacking)


def confine(order: WorkerOrder) -> str:
    """Keep this process, which has given up new privileges, from all else for ever; return by what, for the state.

    Raises WorkerError if the sandbox is required and the kernel cannot do it, or does not do what it says it can.
    """
    wanted = order.sandbox
    if wanted is None:
        return ""
    if wanted.required and (lacking := missing()):
        raise WorkerError(f"workers.sandbox is on, and this kernel has no {lacking}")
    _settle_temporary_files(wanted)
    used = []
    try:
        give_up_privileges()
        # Rules name this process's own folder of /proc, so they are made here and not before the fork.
        if version := landlock.abi():
            landlock.restrict(version, rules(order, wanted))
            used.append(f"landlock {version}")
        if seccomp.available():
            signals = wanted.processes and version >= landlock.SIGNALS_ABI
            program = seccomp.program(
                os.getpid(), processes=wanted.processes, signals=signals, memory_files=_on_a_real_gpu(order)
            )
            seccomp.install(program)
            used.append("seccomp")
    except OSError as error:
        raise WorkerError(f'the sandbox does not start ({error}): workers.sandbox = "off" goes without') from error
    return ", ".join(used) or "none"


def give_up_privileges() -> None:
    """Give up all capabilities of this thread and what it starts, and priorities above its own.  Raises OSError."""
    for limit in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO):
        resource.setrlimit(limit, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):  # beyond the kernel's last, or this user may not
            break
    header, held = struct.pack("Ii", _CAPABILITIES_VERSION, 0), ctypes.create_string_buffer(24)
    if (libc.capget(header, held) or any(held.raw)) and libc.capset(header, bytes(24)):
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def _on_a_real_gpu(order: WorkerOrder) -> bool:
    return bool(order.visible_devices)


def _settle_temporary_files(wanted: SandboxOrder) -> None:
    """Say where temporary files go: to the first folder that may be changed, or nowhere.

    Libraries ask for such a folder when they are imported, and do not start if there is none that can be written to:
    `tempfile` tries each, and torch makes one for its compiler.  A folder that exists is taken as it is.
    """
    folder = next(filter(os.path.isdir, wanted.write), "")
    if folder:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder or next(filter(os.path.isdir, (os.environ.get("TMPDIR", ""), "/tmp", "/")))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir


def rules(order: WorkerOrder, wanted: SandboxOrder) -> list[Rule]:
    """Return what the worker of `order` may do beneath which paths."""
    run = landlock.READ | (landlock.EXECUTE if wanted.processes else 0)
    proc = f"/proc/{os.getpid()}"
    programs = ("/bin", "/sbin") if wanted.processes else ()
    allowed = [Rule(path, run) for path in (*_SYSTEM, *programs, *installed())]
    allowed += everywhere()
    allowed += [Rule(proc, landlock.READ)]
    allowed += [Rule(f"{proc}/{name}", landlock.READ | landlock.WRITE_FILE) for name in ("clear_refs", "comm")]
    artifacts = (order.artifact_dir, *(resident.artifact_dir for resident in order.also))
    readable = (order.family.folder, *artifacts, str(fetched_files()), *wanted.read)
    allowed += [Rule(path, run) for path in dict.fromkeys(readable) if path]
    allowed += [Rule(path, landlock.CHANGE | run) for path in wanted.write]
    if _on_a_real_gpu(order):
        allowed += [Rule(path, landlock.READ) for path in _GPU_FACTS]
        devices = landlock.READ | landlock.WRITE_FILE | landlock.IOCTL_DEV
        allowed += [Rule(str(path), devices) for path in Path("/dev").glob("nvidia*")]
        allowed += [Rule("/dev/shm", landlock.READ)]
    return allowed


@cache
def everywhere() -> tuple[Rule, ...]:
    """Return the rules that every worker has, beside what is installed.  The zygote calls this once before it forks
    workers, which then start some milliseconds earlier."""
    allowed = [Rule(f"/etc/{name}", landlock.READ) for name in _ETC]
    allowed += [Rule(path, landlock.READ) for path in (*_MACHINE, *_RANDOM)]
    allowed += [Rule(path, landlock.READ | landlock.WRITE_FILE) for path in _NULL]
    allowed += [Rule(str(bus), landlock.READ) for bus in Path("/sys/devices").glob("pci*")]
    allowed += import_roots(sys.path)
    return tuple(rule for rule in allowed if os.path.exists(rule.path))


@cache
def installed() -> tuple[str, ...]:
    """Return the paths of Python, of what is installed for it (links followed), and Clover's; none lies in another."""
    paths = sysconfig.get_paths()
    roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(paths[name] for name in ("stdlib", "purelib", "platlib"))}
    for name in ("clover", "clover.models"):
        module = sys.modules.get(name)
        roots.update(getattr(module, "__path__", ()))
    clover = Path(__file__).resolve().parents[1]
    roots.update((str(clover), str(clover.parent / "models")))  # in a source checkout families lie beside the package
    roots.update(filter(os.path.isabs, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    roots.update(entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages"))
    roots.update(tuple(linked(roots)))
    folders = {str(Path(root)) for root in roots if os.path.exists(root)} - {"/"}
    return tuple(root for root in sorted(folders) if folders.isdisjoint(map(str, Path(root).parents)))


def linked(roots: Iterable[str]) -> Iterator[str]:
    """Yield where the links lead that stand in folders of `roots` named "site-packages" or "dist-packages".

    Landlock judges a file by where it lies, not by the link that led to it.
    """
    for root in roots:
        if Path(root).name in ("site-packages", "dist-packages"):
            with contextlib.suppress(OSError), os.scandir(root) as items:
                yield from (os.path.realpath(item.path) for item in items if item.is_symlink())


def import_roots(path: Iterable[str]) -> Iterator[Rule]:
    """Yield what makes the modules on Python's `path` readable, and nothing else that lies beside them.

    An entry may be the folder that the server was started in, which may hold a token or a ledger.  So only its names,
    modules and packages can be read.  Folders of installed packages are readable as a whole (`installed`).
    """
    roots = tuple(Path(root).resolve() for root in installed())
    for entry in dict.fromkeys(path):
        root = Path(entry or ".").resolve()
        if any(root.is_relative_to(one) for one in roots):
            continue
        if root.is_file():  # a zip file of modules
            yield Rule(str(root), landlock.READ_FILE)
            continue
        yield Rule(str(root), landlock.READ_DIR)
        try:
            items = list(os.scandir(root))
        except OSError:
            continue
        for item in items:
            is_package = item.name.isidentifier() and Path(item.path, "__init__.py").is_file()
            is_beside = item.name.endswith(_BESIDE) and item.is_dir(follow_symlinks=False)
            if is_package or is_beside or item.name.endswith(_MODULES):
                yield Rule(item.path, landlock.READ)


def hint(order: WorkerOrder, error: BaseException) -> str:
    """Return what to say after `error` if the sandbox may have caused it; "" otherwise."""
    current: BaseException | None = error
    while order.sandbox is not None and current is not None:
        if isinstance(current, ImportError | OSError) and _NO_LIBRARY in str(current):
            return f"; {_KEPT_FROM}"
        if isinstance(current, PermissionError):
            named = os.path.abspath(current.filename) if isinstance(current.filename, str) else ""
            leads = f" (a link to {real})" if named and (real := os.path.realpath(named)) != named else ""
            root = "; without capabilities root reads only what modes let root read" if not os.geteuid() else ""
            return f"{leads}; {_KEPT_FROM}{root}"
        current = current.__cause__ or current.__context__
    return ""
