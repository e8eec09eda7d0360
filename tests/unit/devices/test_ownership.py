from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from clover.devices import ownership
from clover.devices.ownership import Ownership, OwnPlace, boot_of
from clover.errors import DeviceError

GPU = "GPU-1234"
ONE = OwnPlace(profile="1g.5gb", start=6, size=1)
FOUR = OwnPlace(profile="4g.20gb", start=0, size=4)


def opened(folder, **options):
    return Ownership(folder, GPU, **options)


def test_what_was_recorded_is_found_by_the_next_process(tmp_path):
    owned = opened(tmp_path / "mig")
    assert owned.places == ()
    owned.add(ONE)
    owned.add(FOUR)
    owned.add(ONE)
    assert owned.places == (FOUR, ONE)
    owned.close()
    owned = opened(tmp_path / "mig")
    assert owned.places == (FOUR, ONE)
    owned.remove(FOUR)
    owned.remove(FOUR)
    owned.close()
    assert opened(tmp_path / "mig", exclusive=False).places == (ONE,)


def test_a_place_is_on_the_disk_before_add_returns(tmp_path, monkeypatch):
    """The file and its folder are flushed, in that order around the replacement."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def flushed(fd):
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    monkeypatch.setattr(ownership.os, "fsync", flushed)
    monkeypatch.setattr(ownership.os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    owned = opened(tmp_path)
    owned.add(ONE)
    assert steps == ["file", "replace", "folder"]
    kept = json.loads((tmp_path / f"{GPU}.json").read_text())["places"]
    assert kept == [{"profile": "1g.5gb", "start": 6, "size": 1}]
    owned.close()


def test_a_record_that_names_its_instance_means_no_other(tmp_path):
    owned = opened(tmp_path)
    owned.add(ONE)
    assert ONE.means(3, "MIG-1")
    assert ONE.means(4, ""), "before it is complete it may be any"
    named = OwnPlace(profile="1g.5gb", start=6, size=1, gi=3, uuid="MIG-1")
    owned.add(named)
    assert owned.places == (named,)
    assert owned.find(("1g.5gb", 6)) == named
    assert named.means(3, "MIG-1")
    assert named.means(3, ""), "its compute instance is gone, which is ours to make again"
    assert not named.means(4, "MIG-1")
    assert not named.means(3, "MIG-2")
    owned.close()
    owned = opened(tmp_path)
    assert owned.places == (named,)
    owned.remove(ONE)
    assert owned.places == ()
    owned.close()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    owned = opened(tmp_path)
    owned.add(ONE)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ownership.os, "fsync", full)
    with pytest.raises(DeviceError, match="No space left"):
        owned.add(FOUR)
    monkeypatch.undo()
    assert owned.places == (ONE,)
    owned.close()
    assert opened(tmp_path, exclusive=False).places == (ONE,)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 1, "gpu": "GPU-1234", "boot": ""}',
        '{"format": 2, "gpu": "GPU-1234", "boot": "", "places": []}',
        '{"format": 1, "gpu": "GPU-other", "boot": "", "places": []}',
        '{"format": 1, "gpu": "GPU-1234", "boot": "", "places": [{"profile": "1g.5gb", "start": "6", "size": 1}]}',
        '{"format": 1, "gpu": "GPU-1234", "boot": "", "places": [], "more": 1}',
    ],
)
def test_a_damaged_record_is_an_error_that_says_what_to_do(tmp_path, text):
    (tmp_path / f"{GPU}.json").write_text(text)
    with pytest.raises(DeviceError, match=r"damaged .* mig list.* delete "):
        opened(tmp_path)
    (tmp_path / f"{GPU}.json").unlink()
    opened(tmp_path).close()  # the failure kept no lock


def test_a_record_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / f"{GPU}.json").mkdir()
    with pytest.raises(DeviceError, match="cannot read"):
        opened(tmp_path)


def test_nothing_of_another_boot_is_ours(tmp_path):
    owned = opened(tmp_path, boot="monday")
    owned.add(ONE)
    owned.close()
    again = opened(tmp_path, boot="monday", exclusive=False)
    assert again.places == (ONE,)
    after = opened(tmp_path, boot="tuesday")
    assert after.places == ()
    after.add(FOUR)
    after.close()
    assert opened(tmp_path, boot="tuesday", exclusive=False).places == (FOUR,)


def test_the_boot_is_the_kernels(tmp_path):
    assert len(boot_of()) == 36
    assert boot_of() == boot_of()
    assert boot_of(tmp_path) == ""


def test_a_second_owner_is_refused_until_the_first_lets_go(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(DeviceError, match="another Clover holds GPU-1234: stop it first"):
        opened(tmp_path)
    assert opened(tmp_path, exclusive=False).places == ()
    other = Ownership(tmp_path, "GPU-5678")
    other.close()
    first.close()
    first.close()
    opened(tmp_path).close()


def test_the_lock_ends_with_its_process(tmp_path):
    """Also one that is killed, and although it started children."""
    program = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from clover.devices.ownership import Ownership\n"
        f"owned = Ownership(Path(sys.argv[1]), {GPU!r})\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        child = int(holder.stdout.readline())
        with pytest.raises(DeviceError, match="another Clover"):
            opened(tmp_path)
        holder.kill()
        holder.wait()
        opened(tmp_path).close()
        os.kill(child, 0)  # it was alive all the while
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    os.kill(child, 9)


def test_reading_only_changes_nothing(tmp_path):
    looking = opened(tmp_path / "none", exclusive=False)
    assert not looking.exclusive
    with pytest.raises(DeviceError, match="reading only"):
        looking.add(ONE)
    assert not (tmp_path / "none").exists()


def test_names_of_gpus_never_become_paths(tmp_path):
    with pytest.raises(DeviceError, match="cannot be kept"):
        Ownership(tmp_path, "../GPU")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot lock"):
        opened(tmp_path / "file")
