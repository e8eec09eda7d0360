"""How workers come to be ready soon: what the zygote imports for them, and which batch sizes they warm."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clover import backends, families
from clover.backends import child_environment
from clover.runtime import worker
from clover.runtime.frames import WorkerOrder

TOY = Path(__file__).parents[1] / "families" / "toy"


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
    code = "from clover.runtime.zygote import may_import, thread_count\n"
    code += "print(*[may_import(n) for n in ('fine', 'failing', 'dying', 'threaded', 'missing')], thread_count())\n"
    code += "print('fine' in sys.modules)"
    assert in_a_zygote(code, tmp_path) == ["True", "False", "False", "False", "False", "1", "False"]


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_what_a_backend_needs_leaves_no_thread(name, tmp_path):
    backend = backends.get(name)
    if backend.available():
        pytest.skip(backend.available())
    code = "from clover.runtime.zygote import Zygote, thread_count\nimport socket\n"
    code += f"Zygote(socket.socketpair()[0])._prepare({name!r})\n"
    code += f"print(thread_count(), *[m in sys.modules for m in {backend.imports!r}])"
    assert in_a_zygote(code, tmp_path) == ["1", *["True"] * len(backend.imports)]


def test_sizes_that_are_warmed_on_cores_end_with_the_time_for_it(order):
    sizes = list(worker._sizes(order))
    assert [size for size, _ in sizes] == [1, 2, 4, 8, 12, 11, 10, 9, 7, 6, 5, 3]
    assert [until for _, until in sizes] == [math.inf] * 2 + [worker.WARM_S * 1e3] * 10


def test_the_largest_batch_is_tried_where_memory_is_limited(order):
    sizes = dict(worker._sizes(msgspec.structs.replace(order, memory_bytes=1 << 30)))
    assert sizes[12] == math.inf
    assert sizes[11] == worker.WARM_S * 1e3


def test_a_gpu_warms_powers_of_two_in_any_case(order):
    sizes = dict(worker._sizes(msgspec.structs.replace(order, visible_devices="GPU-0")))
    assert {size for size, until in sizes.items() if until == math.inf} == {1, 2, 4, 8, 12}
    assert sizes[11] == worker.WARM_GPU_S * 1e3
