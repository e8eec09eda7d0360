"""How workers come to be ready soon: what the zygote imports for them, and which batch sizes they warm."""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clover import backends, families
from clover.backends import child_environment
from clover.worker import frames, residents, zygote
from clover.worker.frames import WorkerOrder

pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[2] / "families" / "toy"


@pytest.fixture(scope="module")
def order():
    spec = families.load_family(str(TOY))
    return WorkerOrder(family=spec, variant=spec.variants[0].name, backend="eager", cores=(0,), max_batch=12)


def in_a_zygote(code, folder):
    """What `code` prints in a process like the zygote, that finds modules in `folder`."""
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    found = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    return found.stdout.split()


def test_the_zygote_imports_what_leaves_no_thread(tmp_path):
    (tmp_path / "fine.py").write_text("")
    (tmp_path / "failing.py").write_text("raise RuntimeError")
    (tmp_path / "dying.py").write_text("import os; os.abort()")
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\n"
    (tmp_path / "threaded.py").write_text(thread)
    code = "from clover.worker.zygote import may_import, thread_count\n"
    code += "print(*[may_import(n) for n in ('fine', 'failing', 'dying', 'threaded', 'missing')], thread_count())\n"
    code += "print('fine' in sys.modules)"
    assert in_a_zygote(code, tmp_path) == ["True", "False", "False", "False", "False", "1", "False"]


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_what_a_backend_needs_leaves_no_thread(name, tmp_path):
    backend = backends.get(name)
    if backend.available():
        pytest.skip(backend.available())
    code = "from clover.worker.zygote import Zygote, thread_count\nimport socket\n"
    code += f"Zygote(socket.socketpair()[0])._prepare({name!r})\n"
    code += f"print(thread_count(), *[m in sys.modules for m in {backend.imports!r}])"
    assert in_a_zygote(code, tmp_path) == ["1", *["True"] * len(backend.imports)]


def test_a_spare_that_lacks_an_import_is_ended(tmp_path):
    (tmp_path / "needed.py").write_text("")
    # Two backends: the modules of one are there already.
    code = """
import os, select, socket, types
from clover import backends
from clover.worker import main, zygote as module  # as the zygote, imports what its forks would: it takes seconds
from clover.worker.zygote import Zygote
backends.BACKENDS.update(old=types.SimpleNamespace(imports=("socket",)), new=types.SimpleNamespace(imports=("needed",)))
zygote = Zygote(socket.socketpair()[0])
zygote._fork_spare()
spare = zygote._spare
tried = module.may_import
module.may_import = lambda name: zygote._spare is None and tried(name)  # a fork beside a spare would hold its line
for name in ("old", "new", "new"):
    zygote._prepare(name)
    print(zygote._spare == spare, zygote._spare is None)
if not select.select([spare.pidfd], [], [], 10)[0]:
    os.kill(spare.pid, 9)
print(os.waitpid(spare.pid, 0)[1], "needed" in sys.modules)
"""
    found = in_a_zygote(code, tmp_path)
    assert found == ["True", "False", "False", "True", "False", "True", "0", "True"]


class Orders:
    """Stands in for a zygote's poller: an event comes, or the wait has lasted long enough."""

    def __init__(self, server, *happens):
        self._server = server
        self._happens = list(happens)
        self.waits = []

    def poll(self, most_ms):
        self.waits.append(most_ms)
        return [(self._server.fileno(), select.POLLIN)] if self._happens.pop(0) == "order" else []


@pytest.fixture
def zygote_of(monkeypatch, tmp_path, order):
    """A zygote to which things happen, in a process that cannot fork; it, and how often it tried."""
    with contextlib.ExitStack() as stack:
        forks = []

        def fork():
            forks.append(1)
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        def make(*happens, threads=1):
            ours, theirs = (stack.enter_context(end) for end in frames.socket_pair())
            monkeypatch.setattr(zygote.os, "fork", fork)
            monkeypatch.setattr(zygote, "thread_count", lambda: threads)
            # At its end it kills its children, and those of this process are servers and zygotes of other tests.
            monkeypatch.setattr(zygote.orphans, "children", list)
            made = zygote.Zygote(theirs)
            made._tried.add(order.backend)
            made._poller = Orders(theirs, *happens)
            for token in range(happens.count("order") - 1):
                pipes = [os.open(tmp_path / "pipe", os.O_RDWR | os.O_CREAT) for _ in range(frames.SPAWN_FDS)]
                frames.send(ours, frames.Spawn(token=token, slots=4, order=order), tuple(pipes))
                frames.close_all(pipes)
            frames.send(ours, frames.Stop())
            return made, ours, forks

        yield make


def test_a_spare_is_tried_once_after_every_order_and_nothing_wakes_an_idle_zygote(zygote_of, monkeypatch, tmp_path):
    made, ours, forks = zygote_of("order", "order", "quiet", "order", "quiet", "order")
    # The pairs that it opens itself, not all descriptors of this process: those of other tests may go meanwhile.
    opened = []
    socket_pair = frames.socket_pair
    monkeypatch.setattr(frames, "socket_pair", lambda: opened.append(socket_pair()) or opened[-1])
    made.forever()
    quiet_ms = zygote._SPARE_AFTER_MS
    assert made._poller.waits == [None, quiet_ms, quiet_ms, None, quiet_ms, None]
    assert len(forks) == 3 + 2
    refused = [frames.decode(frames.receive(ours)[1], frames.SpawnRefused) for _ in range(3)]
    assert [(said.token, said.reason) for said in refused] == [
        (token, "fork: Resource temporarily unavailable") for token in range(3)
    ]
    assert len(opened) == 2  # one for each spare that it tried
    assert all(end.fileno() == -1 for pair in opened for end in pair)
    # Nor is anything open that came with the orders.
    assert str(tmp_path / "pipe") not in map(os.path.realpath, glob.iglob("/proc/self/fd/*"))


def test_a_zygote_with_threads_forks_no_spare(zygote_of):
    made, _, forks = zygote_of("order", "quiet", "order", threads=2)
    made.forever()
    assert made._poller.waits == [None, zygote._SPARE_AFTER_MS, None]
    assert not forks


def test_without_descriptors_there_is_no_spare_and_the_zygote_goes_on(zygote_of, monkeypatch):
    made, _, forks = zygote_of("order", "quiet", "order")

    def socket_pair():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(frames, "socket_pair", socket_pair)
    made.forever()
    assert len(forks) == 1
    assert made._spare is None


def test_an_order_that_only_just_fits_a_frame_is_left_to_a_fork(zygote_of, order):
    made, _, _ = zygote_of("order")
    line, far = frames.socket_pair()
    fits = frames.Spawn(token=1, slots=4, order=order)
    room = frames.MAX_PAYLOAD_BYTES - len(msgspec.json.encode(fits))
    fits = msgspec.structs.replace(fits, order=msgspec.structs.replace(order, place=order.place + "x" * room))
    assert frames.pack(fits)
    with line, far:
        made._spare = zygote.Spare(pid=0, pidfd=-1, line=line)
        made._spawn(fits, ())
        assert frames.receive(far) is None
    assert made._spare is None


def test_a_fork_without_a_pidfd_is_refused_and_ended(tmp_path, order):
    code = f"""
import os, socket
import msgspec
from clover.worker import frames
from clover.worker.zygote import Zygote
from clover.worker.frames import WorkerOrder
order = msgspec.json.decode({msgspec.json.encode(order)!r}, type=WorkerOrder)
def pidfd_open(pid):
    raise OSError(24, "Too many open files")
os.pidfd_open = pidfd_open
ours, theirs = frames.socket_pair()
zygote = Zygote(theirs)
zygote._tried.add(order.backend)
zygote._fork_spare()
print(zygote._spare)
pipes = [os.open(os.devnull, os.O_RDWR) for _ in range(frames.SPAWN_FDS)]
zygote._spawn(frames.Spawn(token=3, slots=4, order=order), tuple(pipes))
print(frames.decode(frames.receive(ours)[1], frames.SpawnRefused).reason.replace(" ", "_"))
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("none")
"""
    assert in_a_zygote(code, tmp_path) == ["None", "fork:_Too_many_open_files", "none"]


def test_sizes_that_are_warmed_on_cores_end_with_the_time_for_it(order):
    sizes = list(residents.sizes(order))
    assert [size for size, _ in sizes] == [1, 2, 4, 8, 12, 11, 10, 9, 7, 6, 5, 3]
    assert [until for _, until in sizes] == [math.inf] * 2 + [residents.WARM_S * 1e3] * 10


def test_launches_are_compared_trusted_or_left_as_the_order_says(order, monkeypatch):
    class Run:
        def __init__(self):
            self.asked, self.weights_bytes, self.replay_fault = [], 0, None

        def record_launches(self, *, check):
            self.asked.append(check)
            self.replay_fault = "a replay differs" if check else None

    runs = []

    def load(*_):
        runs.append(Run())
        return runs[-1]

    monkeypatch.setattr(residents.backends, "get", lambda name: SimpleNamespace(load=load, compiles=False))
    names = [variant.name for variant in order.family.variants]
    also = tuple(frames.Resident(variant=name, backend="eager", recording="skip") for name in names[1:])
    for how, asked, said in (("check", [True], {names[0]: "a replay differs"}), ("trust", [False], {})):
        runs.clear()
        held = residents.ResidentSet(msgspec.structs.replace(order, recording=how, also=also), None)
        for lane in range(1 + len(also)):
            held._load(lane)
        assert [run.asked for run in runs] == [asked, *[[]] * len(also)]
        assert held.state().recorded == said


def test_the_largest_batch_is_tried_where_memory_is_limited(order):
    sizes = dict(residents.sizes(msgspec.structs.replace(order, memory_bytes=1 << 30)))
    assert sizes[12] == math.inf
    assert sizes[11] == residents.WARM_S * 1e3


def test_a_gpu_warms_powers_of_two_in_any_case(order):
    sizes = dict(residents.sizes(msgspec.structs.replace(order, visible_devices="GPU-0")))
    assert {size for size, until in sizes.items() if until == math.inf} == {1, 2, 4, 8, 12}
    assert sizes[11] == residents.WARM_GPU_S * 1e3
