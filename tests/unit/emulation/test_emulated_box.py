"""State files of emulated machines, how a process comes to use one, and the tables they are made from."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clover.devices import tables
from clover.emulation import emulated
from clover.errors import DeviceError
from tests.support import disturb
from tests.support.disturb import Fault
from tests.support.nvml_child import ROOT, Child

pytestmark = pytest.mark.slow

A100 = "a100-40gb"


@pytest.fixture(autouse=True)
def no_machine_of_an_earlier_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ran in this process before has left its emulated machine to it, and to its children."""
    monkeypatch.delenv(emulated.STATE, raising=False)
    monkeypatch.setattr(emulated, "_used", [])


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_there_are_twelve_boards_and_an_error_names_them() -> None:
    assert len(tables.names()) == len(set(tables.names())) == 12
    with pytest.raises(DeviceError, match="gb200-186gb"):
        tables.table("a100")
    with pytest.raises(DeviceError, match=r"7g\.40gb"):
        tables.table(A100).profile("7g.80gb")


@pytest.mark.parametrize("name", tables.names())
def test_a_table_is_consistent(name: str) -> None:
    gpu = tables.table(name)
    assert set(gpu.sources.values()) <= set(tables.sources())
    assert 0 < gpu.idle_w < gpu.max_w
    for field in ("name", "enum", "profile_id"):
        values = [getattr(row, field) for row in gpu.profiles]
        assert len(set(values)) == len(values), field
    for row in gpu.profiles:
        assert all(0 <= start <= gpu.memory_slices - row.size for start in row.starts)
        assert row.starts == tuple(sorted(set(row.starts)))
        assert 1 <= row.slices <= gpu.compute_slices
        assert 1 <= row.most <= len(row.starts)
        assert row.memory_mib <= gpu.memory_mib * row.size / gpu.memory_slices * 1.05
        assert row.sm <= gpu.sm
        assert row.name.startswith(f"{row.slices}g.")
        assert row.media is ("+me" in row.name)
    whole = [row for row in gpu.profiles if row.base and row.size == gpu.memory_slices]
    assert [row.slices for row in whole] == [gpu.compute_slices]
    base = [profile.name for profile in tables.slice_profiles(gpu)]
    assert base == [row.name for row in gpu.profiles if row.kind == "base"]
    assert len(tables.slice_profiles(gpu, base_only=False)) == len(gpu.profiles)


def test_what_was_not_published_is_said_to_be_analytical() -> None:
    h200, b200 = tables.table("h200-141gb"), tables.table("b200-180gb")
    assert not any(row.analytical for row in h200.profiles)
    unknown = [row.name for row in b200.profiles if "memory_mib" in row.analytical]
    assert unknown == ["3g.90gb", "4g.90gb", "7g.180gb"]
    assert b200.profile("3g.90gb").memory_mib == 4 * b200.profile("1g.23gb").memory_mib


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_is_kept_if_it_is_the_same(tmp_path: Path) -> None:
    box = tmp_path / "folder" / "box.nvml"
    emulated.create_box(box, A100, 2)
    with Child(box) as child:
        child.run("create('3g.20gb', 4)")
        emulated.create_box(box, tables.table(A100), 2)
        assert len(child("instances()")) == 1
    for other in ({"count": 3}, {"table": "a100-80gb"}, {"seed": 1}, {"mig_enabled": False}, {"privileged": False}):
        with pytest.raises(DeviceError, match="another emulated machine"):
            emulated.create_box(box, **{"table": A100, "count": 2, **other})
    assert [path.name for path in box.parent.iterdir()] == ["box.nvml"]


def test_a_state_file_of_another_version_is_named_as_that(tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, A100, 1)
    content = bytearray(box.read_bytes())
    content[8] -= 1
    box.write_bytes(content)
    for use in (lambda: emulated.use_box(box), lambda: emulated.create_box(box, A100, 1)):
        with pytest.raises(DeviceError, match=r"of another version of Clover: end what uses it, and remove the file"):
            use()


def test_boxes_of_other_seeds_are_other_machines(tmp_path: Path) -> None:
    uuids = []
    for seed in (0, 1, 0):
        box = tmp_path / f"{len(uuids)}.nvml"
        emulated.create_box(box, A100, 2, seed=seed)
        with Child(box) as child:
            uuids.append(child("[n.nvmlDeviceGetUUID(gpu(i)) for i in range(2)]"))
    assert uuids[0] == uuids[2]
    assert len({*uuids[0], *uuids[1]}) == 4


def test_a_box_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: emulated.create_box(box, A100, 2), range(8)))
    assert [path.name for path in tmp_path.iterdir()] == ["box.nvml"]


@pytest.mark.parametrize("count", [0, 33])
def test_a_box_has_a_number_of_boards(tmp_path: Path, count: int) -> None:
    with pytest.raises(DeviceError, match="1 to 32"):
        emulated.create_box(tmp_path / "box.nvml", A100, count)


def test_what_is_not_a_box_is_left_alone(tmp_path: Path) -> None:
    box = tmp_path / "notes.txt"
    box.write_text("mine")
    with pytest.raises(DeviceError, match="another"):
        emulated.create_box(box, A100, 1)
    for act in (disturb.reboot, disturb.clear_faults, lambda path: disturb.lose(path, 0)):
        with pytest.raises(DeviceError, match="DRIVER_NOT_LOADED"):
            act(box)
    assert box.read_text() == "mine"
    with pytest.raises(DeviceError, match="cannot be kept"):
        emulated.create_box(box / "box.nvml", A100, 1)


def test_acting_on_a_box_leaves_no_library_behind(tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    done = python(
        "import sys, pathlib\n"
        "from clover.emulation import emulated\n"
        "from tests.support import disturb\n"
        "box = pathlib.Path(sys.argv[1])\n"
        "emulated.create_box(box, 'a100-40gb', 1)\n"
        "disturb.inject(box, disturb.Fault(symbol='nvmlDeviceGetName', error='UNKNOWN'))\n"
        "disturb.lose(box, 0); disturb.restore(box, 0); disturb.reboot(box)\n"
        "assert not {'torch', 'pynvml'} & set(sys.modules)\n"
        "assert 'nvml_emulator' not in open('/proc/self/maps').read()\n",
        box,
    )
    assert done.returncode == 0, done.stderr


def test_an_act_on_no_such_board_says_so(tmp_path: Path) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, A100, 2)
    for act in (disturb.lose, disturb.restore, disturb.reset):
        for gpu in (-1, 2):
            with pytest.raises(DeviceError, match=f"gpu {gpu}: INVALID_ARGUMENT"):
                act(box, gpu)


# --- a process and its box -------------------------------------------------------------------------------------------


USE = """
import sys, os, pathlib
from clover.emulation import emulated
from clover.errors import DeviceError
one, two = map(pathlib.Path, sys.argv[1:3])
emulated.create_box(one, "a100-40gb", 1)
emulated.create_box(two, "a100-40gb", 2)
def refused(act):
    try:
        act()
    except DeviceError as error:
        return str(error)
    return ""
"""


def test_a_process_uses_one_box(tmp_path: Path) -> None:
    done = python(
        USE + "assert 'no emulated machine' in refused(lambda: emulated.use_box(one.parent / 'none'))\n"
        "(one.parent / 'layouts.toml').write_text('[configs]')\n"
        "assert 'is no emulated machine: give' in refused(lambda: emulated.use_box(one.parent / 'layouts.toml'))\n"
        "emulated.use_box(one); emulated.use_box(one); os.chdir(one.parent); emulated.use_box(pathlib.Path(one.name))\n"
        "assert 'already' in refused(lambda: emulated.use_box(two))\n"
        "library = str(emulated.library())\n"
        "assert 'already' in refused(lambda: emulated.Attachment(library, str(two), 'x'))\n"
        "import pynvml; pynvml.nvmlInit(); assert pynvml.nvmlDeviceGetCount() == 1\n",
        tmp_path / "one.nvml",
        tmp_path / "two.nvml",
    )
    assert done.returncode == 0, done.stderr


def test_attaching_chooses_the_box_too(tmp_path: Path) -> None:
    box = tmp_path / "one.nvml"
    emulated.create_box(box, A100, 1)
    with Child(box) as child:
        uuid = child("mig('1g.5gb')")
    done = python(  # a worker, which is told where to go and never loads the bindings
        USE + "board = emulated.Attachment(str(emulated.library()), str(one), sys.argv[3])\n"
        "board.draw(1.5); board.use_memory(1); board.close(); board.close()\n"
        "assert 'INVALID_ARGUMENT' in refused(lambda: board.draw(1))\n"
        "assert 'already' in refused(lambda: emulated.use_box(two))\n"
        "emulated.use_box(one)\n"
        "assert 'pynvml' not in sys.modules\n"
        "assert 'cannot be loaded' in refused(lambda: emulated.Attachment('/none.so', str(one), 'x'))\n",
        box,
        tmp_path / "two.nvml",
        uuid,
    )
    assert done.returncode == 0, done.stderr


def test_processes_on_a_slice_take_turns(tmp_path: Path) -> None:
    box = tmp_path / "one.nvml"
    emulated.create_box(box, A100, 1)
    with Child(box) as child:
        uuids = [child("mig('3g.20gb')"), child("mig('3g.20gb')")]
    done = python(
        USE + "import threading\n"
        "attach = lambda uuid: emulated.Attachment(str(emulated.library()), str(one), uuid)\n"
        "mine, other, elsewhere = attach(sys.argv[3]), attach(sys.argv[3]), attach(sys.argv[4])\n"
        "mine.enter(); elsewhere.enter()\n"
        "entered = threading.Event()\n"
        "waiting = threading.Thread(target=lambda: (other.enter(), entered.set()), daemon=True)\n"
        "waiting.start()\n"
        "assert not entered.wait(0.05)\n"
        "mine.leave()\n"
        "assert entered.wait(5)\n"
        "waiting = threading.Thread(target=lambda: (mine.enter(), entered.set()), daemon=True)\n"
        "entered.clear(); waiting.start()\n"
        "assert not entered.wait(0.05)\n"
        "other.close()  # as the death of its process does\n"
        "assert entered.wait(5)\n",
        box,
        tmp_path / "two.nvml",
        *uuids,
    )
    assert done.returncode == 0, done.stderr


def test_another_nvml_in_the_process_is_noticed(tmp_path: Path) -> None:
    """Any library of that name: a copy of ours stands for the driver's."""
    real = tmp_path / "libnvidia-ml.so.1"
    real.write_bytes(emulated.library().read_bytes())
    done = python(
        USE + "import ctypes; ctypes.CDLL(sys.argv[3])\n"
        "assert 'loaded another NVML' in refused(lambda: emulated.use_box(one))\n",
        tmp_path / "one.nvml",
        tmp_path / "two.nvml",
        real,
    )
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_not_built_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated.sysconfig, "get_config_var", lambda _: ".none.so")
    with pytest.raises(DeviceError, match=r"setup\.py build_ext --inplace"):
        emulated.library()


def test_a_real_reboot_is_a_reboot_of_the_box(tmp_path: Path) -> None:
    """The file remembers which boot of the machine it was last used in; here somebody changes what it remembers."""
    box = tmp_path / "box.nvml"
    emulated.create_box(box, A100, 1)
    with Child(box) as child:
        child.run("create('3g.20gb', 4); n.nvmlDeviceSetMigMode(gpu(), 1)")
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    content = box.read_bytes()
    assert content.count(boot) == 1
    box.write_bytes(content.replace(boot, boot[::-1]))
    with Child(box) as child:
        assert child("instances()") == []
        assert child("n.nvmlDeviceGetMigMode(gpu())") == [1, 1]
    disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="UNKNOWN"))
