"""`python -m clover mig` on emulated boxes.

A process sees one box, so each box has a process of its own that runs one command after another (`Driver`), or one
command (`fresh`): forks of a process that has imported them.  What is about signals, terminals, encodings and pipes
starts the command as a user does (`interpreted`).
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clover.devices import tables
from clover.emulation import emulated
from clover.emulation.cli.command import parse_box
from clover.errors import ConfigError
from clover.planning.packing.geometry import layouts
from tests.support import disturb
from tests.support.forks import Forks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SERVANT = textwrap.dedent(
    """
    import contextlib, io, json, os, sys
    from clover.cli.mig import main
    for line in sys.stdin:
        order = json.loads(line)
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        sys.stdin = io.TextIOWrapper(io.BytesIO(order["stdin"].encode()))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(order["argv"], {**os.environ, **order["environ"]})
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]
        print(json.dumps([code, *said]), flush=True)
    """
)
# What iterates over standard input above is the real one, whatever sys.stdin is replaced by meanwhile.


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Driver:
    """Runs commands on one box, one after the other, in one process."""

    def __init__(self, forks: Forks, state: Path, cache: Path) -> None:
        self.state, self.cache = state, cache
        self._forks = forks
        # COLUMNS: readline, which pytest imports, exports the terminal's otherwise
        self._pid, self._orders, self._answers = conversation(forks, SERVANT, [], {**os.environ, "COLUMNS": "140"})

    def __call__(self, *argv: str, stdin: str = "", **environ: str) -> Answer:
        environ = {"CLOVER_NVML_STATE": str(self.state), "CLOVER_CACHE_DIR": str(self.cache), **environ}
        order = {"argv": list(argv), "stdin": stdin, "environ": environ}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return Answer(*json.loads(self._answers.readline()))

    def good(self, *argv: str, **options: Any) -> str:
        code, out, err = self(*argv, **options)
        assert (code, err) == (0, ""), (argv, code, out, err)
        return out

    def fails(self, code: int, *argv: str, **options: Any) -> str:
        found = self(*argv, **options)
        assert found.code == code, (argv, found)
        assert "Traceback" not in found.err
        return found.err

    def standing(self, gpu: int = 0) -> list[str]:
        state = json.loads(self.good("list", "--json"))["gpus"][gpu]
        return [f"{item['profile']}@{item['start']}" for item in state["instances"]]

    def close(self) -> None:
        self._orders.close()
        assert self._forks.wait(self._pid) == 0
        self._answers.close()


def conversation(
    forks: Forks, code: str, argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[int, IO[str], IO[str]]:
    """Begin a program; its process id, its input and its output."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    pid = forks.start(code, argv, environ, (theirs_in, theirs_out, 2))
    os.close(theirs_in)
    os.close(theirs_out)
    return pid, open(ours_out, "w"), open(ours_in)


def driven(forks: Forks, folder: Path, name: str, count: int, **options: Any) -> Iterator[Driver]:
    state = folder / "box.nvml"
    emulated.create_box(state, name, count, **options)
    driver = Driver(forks, state, folder / "cache")
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    found = Forks("pynvml", "clover.cli.mig.command", "clover.__main__")
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    yield from driven(forks, tmp_path_factory.mktemp("box"), "a100-40gb", 2)


@pytest.fixture
def box(shared: Driver, tmp_path: Path) -> Driver:
    """Two A100s with MIG on and nothing on them."""
    shared.cache = tmp_path / "cache"
    disturb.clear_faults(shared.state)
    disturb.reboot(shared.state)
    return shared


@pytest.fixture
def hopper(forks: Forks, tmp_path: Path) -> Iterator[Driver]:
    yield from driven(forks, tmp_path, "h100-sxm-80gb", 1, mig_enabled=False)


FILE = """
[configs.balanced]
profiles = { "3g.20gb" = 2 }

[[configs.mixed]]
devices = [0]
profiles = ["4g", "3g"]
[[configs.mixed]]
devices = [1]
profiles = ["3x1g", "3g@4"]

[configs.empty]

[configs.off]
mig = false
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "layouts.toml"
    path.write_text(FILE, encoding="utf-8")
    return str(path)


def apply(box: Driver, file: str, config: str, *flags: str) -> str:
    return box.good("apply", file, "--config", config, "--yes", *flags)


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_shows_modes_slices_instances_and_room(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    text = box.good("list")
    assert text.count("NVIDIA A100-SXM4-40GB (emulated)  GPU-") == 2
    assert "MIG on, 40 GiB, 7 of 7 compute slices in instances" in text
    row = next(line for line in text.splitlines() if "│" in line)
    assert [cell.strip() for cell in row.strip(" │").split("│")] == ["4g.20gb", "3g.20gb"]
    assert len(re.findall(r"\bours +- +MIG-[0-9a-f-]{36}", text)) == 6
    assert "room  none" in text
    assert "room  for 1g.5gb or 1g.5gb+me" in text
    assert "\x1b" not in text


def test_list_as_json(box: Driver, file: str) -> None:
    apply(box, file, "balanced")
    answer = json.loads(box.good("list", "--json"))
    assert answer["emulated"] is True
    first = answer["gpus"][0]
    assert first["mig"] == {"supported": True, "current": True, "pending": True}
    assert (first["compute_slices"], first["memory_slices"]) == (7, 8)
    assert [(item["profile"], item["start"], item["size"], item["whose"]) for item in first["instances"]] == [
        ("3g.20gb", 0, 4, "ours"),
        ("3g.20gb", 4, 4, "ours"),
    ]
    assert all(item["uuid"].startswith("MIG-") and item["whole"] for item in first["instances"])
    assert first["room"] == {}


def test_list_tells_who_is_on_an_instance_and_whose_it_is(forks: Forks, box: Driver, file: str, tmp_path: Path) -> None:
    apply(box, file, "balanced")
    uuid = json.loads(box.good("list", "--json"))["gpus"][0]["instances"][0]["uuid"]
    with Attached(forks, box.state, uuid) as pid:
        first = json.loads(box.good("list", "--json"))["gpus"][0]["instances"][0]
        assert first["pids"] == [pid]
        assert f" {pid} " in box.good("list")
    elsewhere = json.loads(box.good("list", "--json", "--cache-dir", str(tmp_path / "other")))
    assert {item["whose"] for gpu in elsewhere["gpus"] for item in gpu["instances"]} == {"foreign"}


class Attached:
    """A process on an instance, as a worker is; its id."""

    def __init__(self, forks: Forks, state: Path, uuid: str) -> None:
        program = (
            "import sys; from clover.emulation.emulated import Attachment; "
            f"held = Attachment({str(emulated.library())!r}, {str(state)!r}, {uuid!r}); "
            "print('on', flush=True); sys.stdin.read()"
        )
        self._forks = forks
        self._pid, self._input, self._output = conversation(forks, program, [], os.environ)

    def __enter__(self) -> int:
        assert self._output.readline() == "on\n"
        return self._pid

    def __exit__(self, *_: object) -> None:
        self._input.close()
        self._output.close()
        self._forks.wait(self._pid)


def test_list_of_a_box_without_mig_mode(hopper: Driver) -> None:
    text = hopper.good("list")
    assert "MIG off, 80 GiB, used whole" in text
    assert "│" not in text
    assert json.loads(hopper.good("list", "--json"))["gpus"][0]["mig"]["current"] is False


def test_a_lost_gpu_does_not_hide_the_others(box: Driver, file: str) -> None:
    disturb.lose(box.state, 1)
    try:
        text = box.good("list")
        assert "MIG on" in text
        assert "gpu1" in text
        assert "lost: it does not answer" in text
        assert box.fails(1, "apply", file, "--config", "balanced", "--yes").count("the GPU is lost") == 1
        assert box.standing(0) == []
        assert "left out" in box.good("export")
    finally:
        disturb.restore(box.state, 1)


def test_a_gpu_whose_handle_is_unknown_is_lost_too(box: Driver) -> None:
    disturb.lose(box.state, 1, "UNKNOWN")
    try:
        assert "lost: it does not answer" in box.good("list")
    finally:
        disturb.restore(box.state, 1)


# --- assert and export ----------------------------------------------------------------------------------------------


def test_assert_says_what_differs(box: Driver, file: str) -> None:
    code, out, _ = box("assert", file, "--config", "mixed")
    assert code == 1
    assert out.splitlines() == [
        "gpu0:4g.20gb@0 is missing",
        "gpu0:3g.20gb@4 is missing",
        *(f"gpu1:1g.5gb@{slot} is missing" for slot in range(3)),
        "gpu1:3g.20gb@4 is missing",
    ]
    apply(box, file, "mixed")
    assert "matches mixed" in box.good("assert", file, "--config", "mixed")
    answer = box("assert", file, "--config", "off", "--json")
    assert answer.code == 1
    found = json.loads(answer.out)
    assert (found["config"], found["matches"]) == ("off", False)
    assert found["differences"][0] == "gpu0: MIG mode is on, wanted off"
    assert json.loads(box.good("assert", file, "--config", "mixed", "--json"))["matches"] is True


def test_export_is_a_file_that_matches(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    text = box.good("export", "--name", "to day")
    assert '[[configs."to day"]]' in text
    assert text.count("# GPU ") == 2
    assert "matches to day" in box.good("assert", "-", stdin=text)
    as_json = box.good("export", "--json")
    assert json.loads(as_json)["configs"]["now"][0]["profiles"] == ["4g.20gb@0", "3g.20gb@4"]
    assert box.good("assert", "-", stdin=as_json)
    apply(box, file, "balanced")
    assert box("assert", "-", stdin=text).code == 1


def test_export_joins_equal_gpus_and_names_mode_off(box: Driver, hopper: Driver, file: str) -> None:
    apply(box, file, "balanced")
    assert "devices = [0, 1]" in box.good("export")
    off = hopper.good("export")
    assert "mig = false" in off
    assert hopper.good("assert", "-", stdin=off)


A100 = tuple(profile for profile in tables.slice_profiles(tables.table("a100-40gb"), base_only=False))
EVERY = layouts(A100, device="gpu0", compute=7, maximal=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.tuples(st.sampled_from(EVERY), st.sampled_from(EVERY)), after=st.sampled_from(EVERY))
def test_any_layout_goes_round_trip(box: Driver, before: tuple[Any, Any], after: Any) -> None:
    def text(*gpus: Any) -> str:
        groups = [
            {"devices": [index], "profiles": [f"{item.profile}@{item.start}" for item in gpu]}
            for index, gpu in enumerate(gpus)
        ]
        return json.dumps({"configs": {"one": groups}})

    box.good("apply", "-", "--yes", stdin=text(*before))
    exported = box.good("export")
    box.good("assert", "-", stdin=exported)
    box.good("assert", "-", stdin=text(*before))
    plan = json.loads(box.good("apply", "-", "--dry-run", "--json", stdin=text(after, before[1])))
    kept = [f"gpu0:{item.profile}@{item.start}" for item in before[0] if item in after]
    assert sorted(step["at"] for step in plan["steps"] if step["do"] == "keep" and "gpu0" in step["at"]) == sorted(kept)
    uuids = {item["uuid"] for item in json.loads(box.good("list", "--json"))["gpus"][0]["instances"]}
    box.good("apply", "-", "--yes", stdin=text(after, before[1]))
    left = {item["uuid"] for item in json.loads(box.good("list", "--json"))["gpus"][0]["instances"]}
    assert len(uuids & left) >= len(kept)
    assert box.standing(0) == [f"{item.profile}@{item.start}" for item in after]
    box.good("apply", "-", "--yes", stdin=exported)
    box.good("assert", "-", stdin=exported)


# --- apply ----------------------------------------------------------------------------------------------------------


def test_apply_keeps_what_matches_and_says_each_step(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    before = json.loads(box.good("list", "--json"))["gpus"][0]["instances"][1]
    text = apply(box, file, "balanced")
    assert text.splitlines() == [
        "removed gpu0:4g.20gb@0",
        "made gpu0:3g.20gb@0",
        *(f"removed gpu1:1g.5gb@{slot}" for slot in range(3)),
        "made gpu1:3g.20gb@0",
        "the box matches balanced",
    ]
    assert json.loads(box.good("list", "--json"))["gpus"][0]["instances"][1] == before
    assert "nothing to do" in apply(box, file, "balanced")
    assert json.loads(apply(box, file, "balanced", "--json"))["matches"] is True


def test_dry_run_and_no_answer_change_nothing(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    text = box.good("apply", file, "--config", "balanced", "--dry-run")
    assert text.splitlines()[:3] == [
        "gpu0   keep    3g.20gb@4",
        "       remove  4g.20gb@0",
        "       make    3g.20gb@0",
    ]
    assert "nothing was changed" in text
    assert "give --yes" in box.fails(2, "apply", file, "--config", "balanced")
    assert box.standing(0) == ["4g.20gb@0", "3g.20gb@4"]
    steps = json.loads(box.good("apply", file, "--config", "balanced", "--dry-run", "--json"))["steps"]
    assert {"do": "remove", "at": "gpu0:4g.20gb@0"} in steps


def test_what_is_not_ours_stays_unless_forced(box: Driver, file: str, tmp_path: Path) -> None:
    apply(box, file, "mixed", "--cache-dir", str(tmp_path / "somebody"))
    said = box.fails(1, "apply", file, "--config", "balanced", "--yes")
    assert "gpu0:4g.20gb@0 was not made by Clover: --force-foreign removes it" in said
    assert "nothing was changed" in said
    assert box.standing(0) == ["4g.20gb@0", "3g.20gb@4"]
    shown = box("apply", file, "--config", "balanced", "--dry-run").out
    assert "remove  4g.20gb@0 (foreign)" in shown
    apply(box, file, "balanced", "--force-foreign")
    whose = [item["whose"] for item in json.loads(box.good("list", "--json"))["gpus"][0]["instances"]]
    assert whose == ["ours", "foreign"]


def test_half_an_instance_is_shown_and_made_anew(forks: Forks, box: Driver) -> None:
    program = f"{ASK}; n.nvmlDeviceCreateGpuInstance(h, n.nvmlDeviceGetGpuInstanceProfileInfo(h, 4).id)"
    done = fresh(forks, "emulate", "--state", str(box.state), "--", sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "none: it has no compute instance of its full size" in box.good("list")
    text = '[configs.a]\ndevices = [0]\nprofiles = ["7g"]'
    code, out, _ = box("assert", "-", stdin=text)
    assert (code, out) == (1, "gpu0:7g.40gb@0 has no compute instance of its full size (foreign)\n")
    assert "--force-foreign" in box.fails(1, "apply", "-", "--yes", stdin=text)
    out = box.good("apply", "-", "--yes", "--force-foreign", stdin=text)
    assert out.splitlines() == ["removed gpu0:7g.40gb@0", "made gpu0:7g.40gb@0", "the box matches a"]
    instance = json.loads(box.good("list", "--json"))["gpus"][0]["instances"][0]
    assert (instance["whole"], instance["whose"]) == (True, "ours")


def test_what_is_in_use_stays(forks: Forks, box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    uuid = json.loads(box.good("list", "--json"))["gpus"][0]["instances"][0]["uuid"]
    with Attached(forks, box.state, uuid) as pid:
        said = box.fails(1, "apply", file, "--config", "balanced", "--yes", "--force-foreign")
        assert f"gpu0:4g.20gb@0 is in use by process {pid}: stop it first" in said
        refused = json.loads(box("apply", file, "--config", "balanced", "--yes", "--json").out)
        assert len(refused["refused"]) == 1
        assert refused["done"] == []
    apply(box, file, "balanced")


def test_a_server_on_the_gpu_is_not_disturbed(box: Driver, file: str) -> None:
    from clover.devices.ownership import Ownership

    uuid = json.loads(box.good("list", "--json"))["gpus"][1]["uuid"]
    held = Ownership(box.cache / "mig", uuid)
    try:
        said = box.fails(1, "apply", file, "--config", "balanced", "--yes")
        assert f"gpu1: a Clover server has it (process {os.getpid()})" in said
        assert "stop the server" in said
        assert box.standing(0) == []
        assert box.good("list").count("a Clover server has it") == 1
        assert [gpu["held"] for gpu in json.loads(box.good("list", "--json"))["gpus"]] == [False, True]
    finally:
        held.close()
    apply(box, file, "balanced")


def test_a_step_that_fails_is_named_and_the_rest_can_follow(box: Driver, file: str) -> None:
    fault = disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", gpu=0, error="UNKNOWN", nth=2)
    disturb.inject(box.state, fault)
    code, out, err = box("apply", file, "--config", "mixed", "--yes")
    assert code == 1
    assert out.splitlines() == ["made gpu0:4g.20gb@0"]
    assert "gpu0:3g.20gb@4 cannot be made" in err
    assert "the same command takes up from there" in err
    disturb.clear_faults(box.state)
    assert "made gpu0:3g.20gb@4" in apply(box, file, "mixed")
    assert box.good("assert", file, "--config", "mixed")


def test_without_permission(forks: Forks, tmp_path: Path, file: str) -> None:
    for driver in driven(forks, tmp_path, "a100-40gb", 2, privileged=False):
        text = driver.good("list")
        assert "  MIG on\n" in text, "how much memory there is in all may not be known either"
        assert "fixed: not permitted to change instances, and none is given to this process" in text
        assert "not permitted to see MIG instances" in text
        assert json.loads(driver.good("list", "--json"))["gpus"][0]["hidden"] is True
        for verb in (["export"], ["assert", file, "--config", "balanced"]):
            assert "capability mig/config" in driver.fails(3, *verb)
        assert "not permitted" in driver.fails(3, "apply", file, "--config", "balanced", "--yes")


def test_a_user_without_rights_sees_what_was_given(forks: Forks, tmp_path: Path, file: str) -> None:
    for driver in driven(forks, tmp_path, "a100-40gb", 2):
        apply(driver, file, "mixed")
        own = json.loads(driver.good("list", "--json"))["gpus"]
        emulated.set_privileged(driver.state, False)
        text = driver.good("list")
        assert text.count("fixed: not permitted to change instances; these are served on as they are") == 2
        for gpu in own:
            for item in gpu["instances"]:
                memory = f"{item['memory_mib'] / 1024:>5.2f} GiB"
                assert f"  {item['profile']:<7}  {memory}  fixed  -        {item['uuid']}\n" in text
        found = json.loads(driver.good("list", "--json"))["gpus"]
        assert {gpu["fixed"] for gpu in found} == {"fixed: not permitted to change instances"}
        assert {item["whose"] for gpu in found for item in gpu["instances"]} == {"fixed"}
        assert all(gpu["hidden"] and not gpu["room"] for gpu in found)
        assert "not permitted to see" in driver.fails(3, "apply", file, "--config", "balanced", "--yes")


def test_what_one_gpu_refuses_does_not_hide_the_others(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    disturb.inject(box.state, disturb.Fault(symbol="nvmlDeviceGetPowerUsage", gpu=0, error="UNKNOWN", count=0))
    text = box.good("list")
    assert "cannot be read: the driver refused: Unknown Error (NVML code 999)" in text
    assert len(box.standing(1)) == 4
    assert "# GPU 0: NVIDIA A100-SXM4-40GB, the driver refused" in box.good("export")
    assert "gpu0: the driver refused" in box.fails(1, "apply", file, "--config", "balanced", "--yes")


def test_mode_changes_without_permission(forks: Forks, tmp_path: Path, file: str) -> None:
    for driver in driven(forks, tmp_path, "a100-40gb", 2, privileged=False, mig_enabled=False):
        said = driver.fails(1, "apply", file, "--config", "balanced", "--yes", "--mode-changes")
        assert "gpu0: MIG mode cannot be turned on: not permitted" in said
        assert "nothing was changed" in said


def test_mode_changes_on_ampere_wait_for_a_reset(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    said = box.fails(1, "apply", file, "--config", "off", "--yes")
    assert said.count("needs --mode-changes (this GPU then needs a reset)") == 2
    assert box.standing(0) == ["4g.20gb@0", "3g.20gb@4"]
    for _ in range(2):
        said = box.fails(1, "apply", file, "--config", "off", "--yes", "--mode-changes")
        assert "gpu0 needs a reset for its MIG mode to change" in said
    assert "on until the next reset, then off" in box.good("list")
    for gpu in (0, 1):
        disturb.reset(box.state, gpu)
    assert box.good("assert", file, "--config", "off")
    assert "make    4g, 3g" in box.good("apply", file, "--config", "mixed", "--mode-changes", "--dry-run")
    said = box.fails(1, "apply", file, "--config", "mixed", "--yes", "--mode-changes")
    assert "then apply again" in said
    for gpu in (0, 1):
        disturb.reset(box.state, gpu)
    apply(box, file, "mixed")


def test_mode_changes_on_hopper_go_through(hopper: Driver) -> None:
    text = '[configs.a]\nprofiles = ["3g@4", "2x1g"]'
    assert "make    3g@4, 2 x 1g" in hopper.good("apply", "-", "--dry-run", "--mode-changes", stdin=text)
    out = hopper.good("apply", "-", "--yes", "--mode-changes", stdin=text)
    assert out.splitlines()[0] == "gpu0: MIG mode is on"
    assert hopper.standing() == ["1g.10gb@0", "1g.10gb@1", "3g.40gb@4"]
    out = hopper.good("apply", "-", "--yes", "--mode-changes", stdin="[configs.off]\nmig = false")
    assert out.splitlines()[-2:] == ["gpu0: MIG mode is off", "the box matches off"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('profiles = ["2x4g"]', "cannot exist together on gpu0 .*need 8 compute slices of 7"),
        ('profiles = ["9g"]', "no profile 9g on this GPU; it has 1g.5gb"),
        ('profiles = ["3g@1"]', "may start at memory slice 0, 4"),
        ("devices = [2]", "names GPU 2, and the box has GPUs 0 to 1"),
    ],
)
def test_configurations_that_this_box_cannot_have(box: Driver, config: str, message: str) -> None:
    for verb in ("assert", "apply"):
        assert re.search(message, box.fails(2, verb, "-", stdin=f"[configs.a]\n{config}"))


# --- what cannot be read, what is not there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "required: VERB"),
        (["lst"], 2, "there is no 'lst'.*did you mean list"),
        (["list", "--frob"], 2, "unrecognised arguments: --frob"),
        (["list", "--", "x"], 2, "only emulate takes a command"),
        (["assert", "/nowhere/file"], 2, "cannot read /nowhere/file: No such file"),
        (["apply", "FILE"], 2, "say which configuration with --config: balanced, mixed, empty, off"),
        (["apply", "FILE", "--config", "mixd"], 2, "did you mean mixed"),
        (["export", "--name", ""], 2, "--name needs"),
        (["emulate"], 2, "give a command after --"),
        (["emulate", "a100-40gb:1"], 2, "give a command after --"),
        (["emulate", "a100-40gb:1", "--"], 2, "a command must follow --"),
        (["emulate", "--", "true"], 2, "name a GPU, as a100-40gb:2"),
        (["emulate", "a101", "--", "true"], 2, "no table of a GPU 'a101'"),
        (["emulate", "a100 40gb", "--", "true"], 2, "must read NAME:COUNT"),
        (["emulate", "--state", "BOX"], 2, "say what to do with the box"),
        (["emulate", "--state", "/nowhere/box", "--", "true"], 2, "there is no emulated box /nowhere/box"),
        (["emulate", "--state", "BOX", "--mig-off", "--", "true"], 2, "are for a new box"),
    ],
)
def test_errors_are_short_and_say_what_to_do(box: Driver, file: str, argv: list[str], code: int, message: str) -> None:
    argv = [{"FILE": file, "BOX": str(box.state)}.get(word, word) for word in argv]
    said = box.fails(code, *argv)
    assert re.search(message, said, re.DOTALL), said


def test_help_names_every_verb(box: Driver) -> None:
    text = box.good("--help")
    for verb in ("list", "export", "assert", "apply", "emulate"):
        assert re.search(rf"^ +{verb} +\w", text, re.MULTILINE)
        assert "usage:" in box.good(verb, "--help")


def fresh(forks: Forks, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != emulated.STATE} | environ
    return forks.run("from clover.__main__ import main; raise SystemExit(main())", ["mig", *argv], environment)


def interpreted(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter of its own."""
    environment = {key: value for key, value in os.environ.items() if key != emulated.STATE} | environ
    command = [sys.executable, "-m", "clover", "mig", *argv]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_no_driver_and_no_box(forks: Forks, tmp_path: Path) -> None:
    none = fresh(forks, "list", "--box", str(tmp_path / "none"))
    assert none.returncode == 2
    assert "make one with `python -m clover mig emulate a100-40gb:2 --state" in none.stderr
    (tmp_path / "junk").write_bytes(b"no box")
    junk = fresh(forks, "list", "--box", str(tmp_path / "junk"))
    assert junk.returncode == 3
    assert "Traceback" not in junk.stderr
    bare = fresh(forks, "list")
    if bare.returncode:  # no driver here
        assert bare.returncode == 3
        assert "libnvidia-ml.so.1" in bare.stderr


def on_terminal(argv: list[str], environ: dict[str, str], typed: dict[str, str]) -> tuple[str, int]:
    """What the command shows on a terminal, and its exit code; each of `typed` is typed once its words are seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        command = [sys.executable, "-m", "clover", "mig", *argv]
        os.execve(command[0], command, {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", **environ})
    text, deadline, left = "", time.monotonic() + 60, dict(typed)
    try:
        while time.monotonic() < deadline:
            try:
                text += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
            for words in [words for words in left if words in text]:
                os.write(terminal, left.pop(words).encode())
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    return text.replace("\r\n", "\n"), os.waitstatus_to_exitcode(status)


def test_on_a_terminal_apply_asks_and_list_has_colours(box: Driver, file: str) -> None:
    environ = {emulated.STATE: str(box.state), "CLOVER_CACHE_DIR": str(box.cache)}
    text, code = on_terminal(["apply", file, "--config", "mixed"], environ, {"[y/N]": "n\n"})
    assert code == 1
    assert "make    4g.20gb@0, 3g.20gb@4" in text
    assert "nothing was changed" in text
    assert box.standing(0) == []
    text, code = on_terminal(["apply", file, "--config", "mixed"], environ, {"[y/N]": "y\n"})
    assert (code, box.standing(0)) == (0, ["4g.20gb@0", "3g.20gb@4"])
    assert "the box matches mixed" in text
    text, code = on_terminal(["list"], environ, {})
    assert code == 0
    assert "\x1b[32m" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == box.good("list")


def test_output_that_cannot_hold_lines_is_ascii(box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    done = interpreted("list", "--box", str(box.state), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "|          4g.20gb          |          3g.20gb          |" in done.stdout


def test_what_is_printed_fits_eighty_columns(forks: Forks, box: Driver, file: str) -> None:
    apply(box, file, "mixed")
    done = fresh(forks, "list", "--box", str(box.state), COLUMNS="80")
    assert done.returncode == 0
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert "…" not in done.stdout
    emulated.set_privileged(box.state, False)
    hidden = fresh(forks, "list", "--box", str(box.state), COLUMNS="80").stdout
    emulated.set_privileged(box.state, True)
    assert max(len(line.rstrip()) for line in hidden.splitlines()) <= 80
    assert "these are served on as they are" in hidden
    uuids = re.findall(
        r"^    MIG-[0-9a-f-]{36}$", fresh(forks, "list", "--box", str(box.state), COLUMNS="80").stdout, re.M
    )
    assert len(uuids) == 6, "each on a line of its own"


# --- emulate --------------------------------------------------------------------------------------------------------

ASK = "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)"


def test_any_program_sees_the_box(forks: Forks, tmp_path: Path) -> None:
    program = f"{ASK}; print(n.nvmlDeviceGetCount(), n.nvmlDeviceGetName(h), n.nvmlDeviceGetMigMode(h))"
    flags = ["emulate", "a30-24gb:3", "--mig-off", "--", sys.executable, "-c", program]
    done = fresh(forks, *flags, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(maxsplit=1)[0] == "3"
    assert "A30 [0, 0]" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_pod_is_emulated_too(forks: Forks, tmp_path: Path) -> None:
    state = str(tmp_path / "pod.nvml")
    done = fresh(forks, "emulate", "pod-1g.10gb:2", "--state", state)
    assert done.stdout == f"made {state}: pod-1g.10gb:2; `--box {state}` acts on it\n"
    listed = fresh(forks, "list", "--box", state, COLUMNS="80").stdout
    assert listed.count("1g.10gb") == 2
    assert "these are served on as they are" in listed
    assert "not permitted" in fresh(forks, "export", "--box", state).stderr
    assert fresh(forks, "export", "--box", state).returncode == 3
    assert fresh(forks, "emulate", "pod-1g.10gb:2", "--state", state).stdout.startswith("there is ")
    assert "leave --mig-off out" in fresh(forks, "emulate", "pod-1g.10gb", "--mig-off", "--state", state).stderr
    assert "no GPU has a profile '9g'" in fresh(forks, "emulate", "pod-9g", "--state", state + "2").stderr


def test_this_command_is_such_a_program(forks: Forks, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clover", "mig", "list", "--json"]
    state = str(tmp_path / "kept")
    made = fresh(forks, "emulate", "a100-40gb:1", "--state", state, "--seed", "5")
    assert f"made {state}" in made.stdout
    done = fresh(forks, "emulate", "--state", state, "--", *command)
    assert json.loads(done.stdout)["emulated"] is True
    assert Path(state).is_file()
    again = fresh(forks, "emulate", "a100-40gb:1", "--state", state, "--seed", "5", "--", "true")
    assert again.returncode == 0
    other = fresh(forks, "emulate", "a100-40gb:2", "--state", state, "--", "true")
    assert other.returncode == 1
    assert "another emulated machine" in other.stderr


def test_two_boxes_do_not_share_uuids(forks: Forks) -> None:
    program = f"{ASK}; print(n.nvmlDeviceGetUUID(h))"
    one, two = (fresh(forks, "emulate", "a100-40gb:1", "--", sys.executable, "-c", program).stdout for _ in range(2))
    assert one.startswith("GPU-")
    assert one != two


def test_privileges_reach_the_program(forks: Forks) -> None:
    program = f"""
{ASK}
for call in (lambda: n.nvmlDeviceGetPowerUsage(h), lambda: n.nvmlDeviceCreateGpuInstance(h, 0)):
    try:
        call(); print("ok")
    except n.NVMLError as error:
        print(error.value)
"""
    done = fresh(forks, "emulate", "a100-40gb:1", "--unprivileged", "--", sys.executable, "-c", program)
    assert done.stdout.split() == ["ok", "4"], done.stderr


def test_exit_codes_pass_through(forks: Forks) -> None:
    assert fresh(forks, "emulate", "a100-40gb", "--", "sh", "-c", "exit 7").returncode == 7
    assert fresh(forks, "emulate", "a100-40gb", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = fresh(forks, "emulate", "a100-40gb", "--", "/nowhere/program")
    assert missing.returncode == 127
    assert "cannot run /nowhere/program: No such file" in missing.stderr
    assert fresh(forks, "emulate", "a100-40gb", "--", "/etc/passwd").returncode == 126


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on_once(tmp_path: Path, sent: signal.Signals) -> None:
    program = textwrap.dedent(
        f"""
        import signal, sys, time
        signal.alarm(30)
        seen = []
        signal.signal({int(sent)}, lambda number, frame: seen.append(number))
        print("ready", flush=True)
        while not seen:
            time.sleep(0.01)
        time.sleep(0.2)
        sys.exit(40 + len(seen))
        """
    )
    command = [sys.executable, "-m", "clover", "mig", "emulate", "a100-40gb", "--", sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(sent)
        assert child.wait(30) == 41


def test_a_key_of_the_terminal_reaches_the_program_once(tmp_path: Path) -> None:
    # A terminal sends its signals to the whole foreground group from within the kernel.
    program = textwrap.dedent(
        """
        import signal, sys, time
        signal.alarm(30)
        seen = []
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        print("ready", flush=True)
        while not seen:
            time.sleep(0.01)
        time.sleep(0.3)
        print("seen", len(seen), flush=True)
        """
    )
    text, code = on_terminal(["emulate", "a100-40gb", "--", sys.executable, "-c", program], {}, {"ready": "\x03"})
    assert "seen 1" in text
    assert code == 0


def test_boxes_in_words() -> None:
    assert parse_box("A100-40GB:2") == ("a100-40gb", 2)
    assert parse_box("a30-24gb") == ("a30-24gb", 1)
    for text in ("", "a100:", "a100:0", "a100:x", "a100:2:3", ":2"):
        with pytest.raises(ConfigError, match="NAME:COUNT"):
            parse_box(text)
