"""The CPU time of a process tree: its living, its dead, and theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clover.energy.cpu_time import ProcessTree, process_ns

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

tree = ProcessTree()
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
