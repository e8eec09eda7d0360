"""The CPU time of a process tree: its living, its dead, and theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clover.energy.cpu_time import ProcessTree
from clover.process_clock import process_ns

# A child ends in the middle, one is alive and has a dead child of its own, and threads start children too.
STORY = '''
import json, os, subprocess, sys, threading, time
from clover.energy.cpu_time import ProcessTree

BURN = """
import subprocess, sys, time
while time.process_time() < float(sys.argv[1]): pass
print(time.process_time(), flush=True)
"""
NEST = BURN + """
print(subprocess.check_output([sys.executable, "-c", sys.argv[2], "0.2"]).decode(), flush=True)
sys.stdin.read()
"""

tree = ProcessTree(walk_s=0)
before = tree.read()
used = []
used.append(float(subprocess.check_output([sys.executable, "-c", BURN, "0.2"])))
living = subprocess.Popen([sys.executable, "-c", NEST, "0.3", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

def in_a_thread():
    other = subprocess.Popen([sys.executable, "-c", NEST, "0.1", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    others.append(other)
    done.set()
    leave.wait()

others, done, leave = [], threading.Event(), threading.Event()
thread = threading.Thread(target=in_a_thread)
thread.start()
done.wait()
for process in (living, others[0]):
    used.append(float(process.stdout.readline()))
    used.append(float(process.stdout.readline()))
after = tree.read()
leave.set()
thread.join()
for process in (living, others[0]):
    process.stdin.close()
    process.stdout.close()
    process.wait()
last = tree.read()
print(json.dumps({"used_s": sum(used), "tree_s": (after.tree_ns - before.tree_ns) / 1e9,
                  "own_s": (after.server_ns - before.server_ns) / 1e9, "last_s": (last.tree_ns - before.tree_ns) / 1e9,
                  "machine_s": (last.machine_ns - before.machine_ns) / 1e9}))
'''


@pytest.mark.slow
def test_the_living_and_the_dead_of_the_tree_are_counted() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", STORY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # What a process does after it prints, and up to a tick (10 ms) for each that is dead, is not in `used_s`.
    least_s = found["used_s"] + found["own_s"]
    assert found["tree_s"] == pytest.approx(least_s, abs=0.15)
    assert found["tree_s"] <= found["last_s"] <= found["machine_s"] + 0.15


def test_a_process_that_is_not_there_has_no_clock() -> None:
    own_ns = process_ns(os.getpid())
    assert own_ns
    assert process_ns(2**22 + 1) is None


def test_a_proc_that_shows_little(tmp_path: Path) -> None:
    times = ProcessTree(tmp_path).read()
    assert times.machine_ns == 0
    assert times.tree_ns >= times.server_ns > 0
    (tmp_path / "stat").write_text("cpu  1 2 3 1000 1000 4 5 0 0 0\n")
    assert ProcessTree(tmp_path).read().machine_ns == 15 * (10**9 // os.sysconf("SC_CLK_TCK"))
    (tmp_path / "stat").write_text("nothing\n")
    assert ProcessTree(tmp_path).read().machine_ns == 0


# A child starts a worker and is killed: the worker is an orphan, goes on, and ends.
ORPHANS = '''
import json, os, signal, subprocess, sys, time
from clover.energy.cpu_time import ProcessTree
from clover.process_clock import process_ns

BURN = """
import sys, time
sys.stdin.readline()
start = time.process_time()
while time.process_time() < start + 0.3: pass
sys.stdin.readline()
"""
PARENT = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=int(sys.argv[2]))
print(worker.pid, flush=True)
sys.stdin.read()
"""
reading, writing = os.pipe()
parent = subprocess.Popen(
    [sys.executable, "-c", PARENT, BURN, str(reading)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    pass_fds=[reading],
)
worker = int(parent.stdout.readline())
tree = ProcessTree(walk_s=0)
before = tree.read([worker])
parent.kill()
parent.wait()
parent.stdin.close()
parent.stdout.close()
orphaned = tree.read([worker])
start_ns = process_ns(worker)
os.write(writing, b"\\n")
while process_ns(worker) < start_ns + 300_000_000:
    time.sleep(0.01)
used = tree.read([worker])
os.write(writing, b"\\n")
while process_ns(worker) is not None:
    time.sleep(0.01)
after = tree.read([worker])
print(json.dumps([(x.tree_ns - before.tree_ns) / 1e9 for x in (orphaned, used, after)]))
'''


def test_workers_that_outlive_their_parent_stay_in_the_tree() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    orphaned_s, used_s, after_s = json.loads(done.stdout)
    assert orphaned_s < 0.1
    assert used_s == pytest.approx(orphaned_s + 0.3, abs=0.1)
    assert used_s <= after_s < used_s + 0.1


def test_a_kernel_that_does_not_list_children(tmp_path: Path) -> None:
    own = os.getpid()
    (tmp_path / str(own)).mkdir()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    for pid, parent in ((own, 1), (child.pid, own), (7, 1)):
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} " + "0 " * 9 + "0 0 100 50 0 0 1 0")
    times = ProcessTree(tmp_path).read()
    child_ns = process_ns(child.pid)
    assert child_ns is not None
    assert times.tree_ns - times.server_ns >= 150 * (10**9 // os.sysconf("SC_CLK_TCK"))
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
