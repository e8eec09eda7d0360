"""Instances in words, layout files, drawings, and a GPU compared with what is wanted: nothing here needs a box."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cli.mig import drawing, files, words
from clover.cli.mig.changes import compare
from clover.cli.mig.drawing import Block
from clover.cli.mig.files import ConfigGroup
from clover.cli.mig.state import GpuState, Instance
from clover.cli.mig.words import Ask
from clover.errors import ConfigError
from clover.planning.packing.geometry import layouts, legal
from clover.types import Placement
from tests.support.examples import examples
from tests.support.geometry_fixture import A30, A100, BY_NAME, place

A30_BY_NAME = {profile.name: profile for profile in A30}


def ask(text: str) -> tuple[Ask, ...]:
    """The instances of a list of words, separated by commas; "0" for none."""
    return () if text == "0" else tuple(item for part in text.split(",") for item in words.parse_instance(part))


def ways(text: str, **blocked: object) -> list[list[str]]:
    found = words.choices(ask(text), BY_NAME, device="gpu0", compute=7, **blocked)  # type: ignore[arg-type]
    return [[item.id.removeprefix("gpu0:") for item in way] for way in found]


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7g", ["7g"]),
        (" 3g.20gb@4", ["3g.20gb@4"]),
        ("2x1g", ["1g", "1g"]),
        ("2 x 3G", ["3g", "3g"]),
        ("1g+me", ["1g+me"]),
        ("1g.24gb+me.all@3", ["1g.24gb+me.all@3"]),
        ("2g-me", ["2g-me"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert [str(item) for item in words.parse_instance(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "g",
        "0",
        "3g,4g",
        "3g.20",
        "3g@",
        "3g@x",
        "0x3g",
        "99x1g",
        "2x3g@0",
        "3g/1g",
        "gpu",
        "1c.3g.20gb",
        "x3g",
    ],
)
def test_words_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        words.parse_instance(text)


def test_a_short_name_is_the_plain_profile_of_the_least_memory() -> None:
    assert words.resolve("1g", BY_NAME).name == "1g.5gb"
    assert words.resolve("1g.10gb", BY_NAME).name == "1g.10gb"
    assert words.resolve("1g+me", BY_NAME).name == "1g.5gb+me"
    assert words.resolve("2g", A30_BY_NAME).name == "2g.12gb"
    for name in ("8g", "2g+me", "3g.40gb"):
        with pytest.raises(ConfigError, match=r"no profile .* it has 1g\.5gb, 2g\.10gb"):
            words.resolve(name, BY_NAME)


def test_all_ways_to_place_a_list_and_no_others() -> None:
    assert ways("7g") == [["7g.40gb@0"]]
    assert ways("3g,4g") == [["4g.20gb@0", "3g.20gb@4"]]
    assert ways("3g") == [["3g.20gb@0"], ["3g.20gb@4"]]
    assert ways("3g,3g@4") == [["3g.20gb@0", "3g.20gb@4"]]
    assert ways("2x2g", blocked=[(0, 2)]) == [["2g.10gb@2", "2g.10gb@4"]]
    assert ways("0") == [[]]
    assert ways("2x4g") == ways("8x1g") == ways("2x1g+me") == []
    with pytest.raises(ConfigError, match="memory slice 0, 4 of this GPU, not at 2"):
        ways("3g@2")


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.sampled_from(["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb"]), max_size=5))
def test_ways_agree_with_brute_force(names: list[str]) -> None:
    options = [[place(name, start) for start in BY_NAME[name].starts] for name in names]
    brute = {
        frozenset(way)
        for way in itertools.product(*options)
        if len(set(way)) == len(way) and not legal(way, BY_NAME, compute=7)
    }
    found = list(words.choices([Ask(profile=name) for name in names], BY_NAME, device="gpu0", compute=7))
    assert len(found) == len(set(found))
    assert {frozenset(way) for way in found} == brute


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2x4g", "need 8 compute slices of 7"),
        ("3x3g@4", ""),
        ("2x1g+me", "media engines|at most, not 2"),
        ("5x1g.10gb", "4 x 1g.10gb at most, not 5"),
        ("3g@0,4g", "overlap"),
    ],
)
def test_why_a_list_has_no_place(text: str, why: str) -> None:
    if not why:
        with pytest.raises(ConfigError):
            ask(text)
        return
    error = words.unplaceable(ask(text), BY_NAME, compute=7, where="gpu0 (A100)")
    with pytest.raises(ConfigError, match=f"cannot exist together on gpu0 .*({why})"):
        raise error


# --- files ----------------------------------------------------------------------------------------------------------

TOML = """
[configs.balanced]
profiles = { "3g.20gb" = 2 }

[[configs.mixed]]
devices = [0, 2]
profiles = ["4g@0", "3g.20gb@4"]
[[configs.mixed]]
devices = [1]
mig = false

[configs.none]
devices = "all"
"""


def test_a_file_in_toml_and_the_same_in_json() -> None:
    found = files.parse(TOML)
    assert found == {
        "balanced": (ConfigGroup(asks=(Ask(profile="3g.20gb"),) * 2),),
        "mixed": (
            ConfigGroup(devices=(0, 2), asks=(Ask(profile="4g", start=0), Ask(profile="3g.20gb", start=4))),
            ConfigGroup(devices=(1,), mig=False),
        ),
        "none": (ConfigGroup(),),
    }
    import tomllib

    assert files.parse(json.dumps(tomllib.loads(TOML))) == found


def test_the_form_of_mig_parted() -> None:
    group = {"devices": [0], "mig-enabled": True, "mig-devices": {"1g.5gb": 2, "3g.20gb": 1}}
    text = json.dumps(
        {
            "version": "v1",
            "mig-configs": {
                "mixed": [group, {"devices": [1], "mig-enabled": False, "mig-devices": {}}],
                "off": [{"devices": "all", "mig-enabled": False}],
            },
        }
    )
    assert files.parse(text) == {
        "mixed": (
            ConfigGroup(devices=(0,), asks=(Ask(profile="1g.5gb"), Ask(profile="1g.5gb"), Ask(profile="3g.20gb"))),
            ConfigGroup(devices=(1,), mig=False),
        ),
        "off": (ConfigGroup(mig=False),),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one table of configurations"),
        ("= 1", "neither TOML nor JSON"),
        ("{", "neither TOML nor JSON"),
        ('{"a":' * 99_999, "neither TOML nor JSON"),
        ("[configs]", "at least one named"),
        ("configs = 3", "at least one named"),
        ("[configs]\na = 3", "configs.a"),
        ("[configs]\na = []", "at least one group"),
        ("[config.a]", "needs one table"),
        ("x = 1\n[configs.a]", "unknown key 'x'"),
        ("[configs.a]\nprofile = 1", "unknown key 'profile' \\(did you mean profiles"),
        ("[configs.a]\nprofiles = 3", "configs.a.profiles"),
        ('[configs.a]\nprofiles = {"3g" = "x"}', "configs.a.profiles"),
        ('[configs.a]\nprofiles = {"3g" = -1}', "0 to 16"),
        ('[configs.a]\nprofiles = {"2x3g" = 1}', "name a profile here"),
        ('[configs.a]\nprofiles = {"3g@0" = 2}', "name a profile here"),
        ('[configs.a]\nprofiles = ["zz"]', "configs.a.profiles: 'zz' is no instance"),
        ('[configs.a]\ndevices = "some"', "configs.a.devices"),
        ("[configs.a]\ndevices = [0, 0]", "different GPU numbers"),
        ("[configs.a]\ndevices = [-1]", "different GPU numbers"),
        ('[configs.a]\nmig = false\nprofiles = ["1g"]', "off there can be no profiles"),
        ("[[configs.a]]\n[[configs.a]]\ndevices = [1]", "must not share a GPU"),
        ("[[configs.a]]\ndevices = [1]\n[[configs.a]]\ndevices = [1]", "GPU 1 is named twice"),
        ('{"mig-configs": {"a": []}}', 'need version "v1"'),
        ('{"version": "v1", "mig-configs": {"a": [{"devices": "all"}]}}', "mig-enabled"),
        (
            '{"version": "v1", "mig-configs": {"a": [{"devices": "all", "mig-enabled": true, "device-filter": "x"}]}}',
            "device-filter",
        ),
        (
            '{"version":"v1","mig-configs":{"a":[{"devices":"all","mig-enabled":true,"mig-devices":{"1c.3g.20gb":1}}]}}',
            "one compute instance",
        ),
        ('{"configs": {}, "mig-configs": {}}', "needs one table"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.parse(text)


def test_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good.toml"
    good.write_text(TOML, encoding="utf-8")
    assert list(files.read(str(good))) == ["balanced", "mixed", "none"]
    stdin = io.TextIOWrapper(io.BytesIO(TOML.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(files.read("-")) == ["balanced", "mixed", "none"]
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        files.read(str(tmp_path / "none.toml"))
    for name, data in (("bad", b"[x"), ("binary", b"\xff\xfe"), ("large", b"#" * (1 << 21))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=name):
            files.read(str(tmp_path / name))


def test_choosing_a_configuration() -> None:
    found = files.parse(TOML)
    assert files.choose(found, "none")[0] == "none"
    assert files.choose({"only": ()}, "") == ("only", ())
    with pytest.raises(ConfigError, match="--config: balanced, mixed, none"):
        files.choose(found, "")
    with pytest.raises(ConfigError, match="did you mean mixed"):
        files.choose(found, "mixd")


def test_which_gpus_a_configuration_means() -> None:
    found = files.parse(TOML)
    assert set(files.of_gpus(found["balanced"], 2)) == {0, 1}
    assert set(files.of_gpus(found["mixed"], 8)) == {0, 1, 2}
    with pytest.raises(ConfigError, match="names GPU 2, and the box has GPUs 0 to 1"):
        files.of_gpus(found["mixed"], 2)
    with pytest.raises(ConfigError, match="GPU 0 only"):
        files.of_gpus(found["mixed"], 1)


ASKS = st.builds(
    Ask,
    profile=st.sampled_from(["1g.5gb", "3g.20gb", "1g.24gb+me.all", "1g", "2g-me"]),
    start=st.none() | st.integers(0, 11),
)
GROUPS = st.lists(st.tuples(st.booleans(), st.lists(ASKS, max_size=7)), min_size=1, max_size=3)


@settings(max_examples=examples(60), deadline=None)
@given(
    groups=GROUPS,
    name=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12),
    everywhere=st.booleans(),
)
def test_what_is_written_is_read_again(groups: list[tuple[bool, list[Ask]]], name: str, everywhere: bool) -> None:
    if everywhere:
        groups = groups[:1]
    config = tuple(
        ConfigGroup(devices=None if everywhere else (index, index + 10), mig=mig, asks=tuple(asks) if mig else ())
        for index, (mig, asks) in enumerate(groups)
    )
    assert files.parse(files.as_toml(name, config, ["from a box"])) == {name: config}
    assert files.parse(json.dumps(files.as_json(name, config))) == {name: config}


# --- drawings -------------------------------------------------------------------------------------------------------


def test_a_drawing_has_every_slice_in_its_column() -> None:
    blocks = [Block(start=4, size=2, name="2g.10gb"), Block(start=0, size=4, name="3g.20gb")]
    numbers, top, row, bottom = (line.plain for line in drawing.framed(8, blocks))
    assert [part for part in numbers.split() if part] == [str(slot) for slot in range(8)]
    assert len(top) == len(row) == len(bottom)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:2] == ["3g.20gb", "2g.10gb"]
    assert set(cells[2]) == {"·"}
    assert [at for at, sign in enumerate(row) if sign == "│"] == [at for at, sign in enumerate(top) if sign in "┌┬┐"]


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_names_always_fit(data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from([4, 8, 12]))
    cuts = sorted(data.draw(st.sets(st.integers(0, axis), min_size=2)))
    name = data.draw(st.sampled_from(["1g.5gb", "1g.24gb+me.all", "7g"]))
    blocks = [Block(start=a, size=b - a, name=name) for a, b in itertools.pairwise(cuts) if data.draw(st.booleans())]
    for ink in (drawing.LINES, drawing.ASCII):
        lines = [line.plain for line in drawing.framed(axis, blocks, ink)]
        assert len({len(line) for line in lines[1:]}) == 1
        assert lines[2].count(name) == len(blocks)


def test_terminals_without_lines_get_ascii() -> None:
    assert drawing.strokes("ascii") is drawing.strokes("latin-1") is drawing.strokes("no-such-codec") is drawing.ASCII
    assert drawing.strokes("utf-8") is drawing.LINES
    assert all(line.plain.isascii() for line in drawing.framed(8, [], drawing.ASCII))


# --- what a GPU needs -----------------------------------------------------------------------------------------------


def stands(profile: str, start: int, *, ours: bool = True, whole: bool = True, pids: tuple[int, ...] = ()) -> Instance:
    uuid = f"MIG-{profile}-{start}" if whole else ""
    return Instance(placement=place(profile, start), uuid=uuid, ours=ours, whole=whole, pids=pids)


def gpu(*instances: Instance, **fields: object) -> GpuState:
    given = {"enabled": True, "pending": True, "profiles": BY_NAME, "compute_slices": 7, "memory_slices": 8, **fields}
    return GpuState(device="gpu0", index=0, uuid="GPU-a", product="A100", instances=instances, **given)  # type: ignore[arg-type]


def wants(text: str) -> ConfigGroup:
    return ConfigGroup(asks=ask(text))


def test_what_matches_stays_and_the_rest_goes() -> None:
    state = gpu(stands("2g.10gb", 0), stands("1g.5gb", 2), stands("3g.20gb", 4))
    changes = compare(state, wants("3g,2x2g"))
    assert [item.placement.id for item in changes.destroy] == ["gpu0:1g.5gb@2"]
    assert [item.id for item in changes.create] == ["gpu0:2g.10gb@2"]
    assert {item.id for item in changes.keep} == {"gpu0:2g.10gb@0", "gpu0:3g.20gb@4"}
    assert compare(state, wants("1g,2g,3g")).none
    assert compare(state, wants("3g@4,2g@0,1g@2")).none
    assert not compare(state, wants("3g@4,2g@0,1g@3")).none


EVERY = layouts(A100, device="gpu0", compute=7, maximal=False)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_no_way_changes_less(data: st.DataObject) -> None:
    before, after = data.draw(st.sampled_from(EVERY)), data.draw(st.sampled_from(EVERY))
    state = gpu(*(stands(item.profile, item.start) for item in before))
    changes = compare(state, ConfigGroup(asks=tuple(Ask(profile=item.profile) for item in after)))
    multiset = Counter(item.profile for item in after)
    best = max(len(set(before) & set(way)) for way in EVERY if Counter(item.profile for item in way) == multiset)
    assert len(changes.keep) == best
    kept = {item.placement for item in state.instances} - {item.placement for item in changes.destroy}
    target = (*kept, *changes.create)
    assert Counter(item.profile for item in target) == multiset
    assert legal(target, BY_NAME, compute=7) == ""


def test_what_is_in_use_or_foreign_is_spared_before_changes_are_saved() -> None:
    used = gpu(stands("3g.20gb", 4, pids=(12,)))
    assert compare(used, wants("3g")).none
    both = compare(gpu(stands("1g.5gb", 0), stands("1g.5gb", 1), stands("1g.5gb", 2, pids=(12,))), wants("1g"))
    assert [item.start for item in both.keep] == [2]
    foreign = compare(gpu(stands("1g.5gb", 0), stands("1g.5gb", 5, ours=False)), wants("1g"))
    assert [item.start for item in foreign.keep] == [5]


def refusals(state: GpuState, group: ConfigGroup, mode_changes: bool = False, force_foreign: bool = False) -> str:
    return "\n".join(compare(state, group).refusals(mode_changes=mode_changes, force_foreign=force_foreign))


def test_what_stands_against_it() -> None:
    assert refusals(gpu(stands("1g.5gb", 0)), wants("0")) == ""
    foreign = gpu(stands("1g.5gb", 0, ours=False))
    assert "not made by Clover: --force-foreign" in refusals(foreign, wants("0"))
    assert refusals(foreign, wants("0"), force_foreign=True) == ""
    used = gpu(stands("1g.5gb", 0, pids=(7, 9)))
    assert "in use by process 7, 9" in refusals(used, wants("0"), force_foreign=True)
    off = gpu(enabled=False, pending=False, profiles={}, needs_reset=True)
    assert "needs --mode-changes (this GPU then needs a reset)" in refusals(off, wants("7g"))
    assert refusals(off, wants("7g"), mode_changes=True) == ""
    assert compare(off, wants("7g")).unplaced == "7g"
    assert compare(off, ConfigGroup(mig=False)).none
    on = compare(gpu(stands("7g.40gb", 0)), ConfigGroup(mig=False))
    assert (on.mode, len(on.destroy)) == (False, 1)


def test_a_gpu_that_a_server_has_is_the_servers() -> None:
    held = gpu(stands("1g.5gb", 0, pids=(7,)), holder=42)
    assert refusals(held, wants("0"), force_foreign=True).startswith("gpu0: a Clover server has it (process 42): ")
    assert refusals(held, wants("1g@0")) == ""
    assert gpu(holder=0).held == "a Clover server has it"
    assert gpu().held == ""


def test_gpus_that_cannot_be_set_up() -> None:
    lost = compare(gpu(lost=True, enabled=False), wants("7g"))
    assert "lost" in " ".join(lost.differences())
    assert not lost.none
    assert "lost" in refusals(gpu(lost=True), wants("7g"), mode_changes=True)
    plain = gpu(supported=False, enabled=False, pending=False, profiles={})
    assert "A100 has no MIG" in refusals(plain, wants("7g"), mode_changes=True)
    assert compare(plain, ConfigGroup(mig=False)).none
    with pytest.raises(ConfigError, match="cannot exist together on gpu0"):
        compare(gpu(), wants("2x4g"))


def test_an_instance_without_its_compute_instance_is_made_again() -> None:
    broken = compare(gpu(stands("3g.20gb", 0, whole=False)), wants("3g@0"))
    assert [item.id for item in broken.create] == ["gpu0:3g.20gb@0"]
    assert len(broken.destroy) == 1
    assert broken.differences() == ["gpu0:3g.20gb@0 has no compute instance of its full size"]


def test_differences_are_said() -> None:
    state = gpu(stands("1g.5gb", 6, ours=False), pending=False)
    assert compare(state, wants("3g@0")).differences() == [
        "gpu0: MIG mode is on until the next reset, then off, wanted on",
        "gpu0:3g.20gb@0 is missing",
        "gpu0:1g.5gb@6 is not wanted (foreign)",
    ]
    assert compare(state, ConfigGroup(mig=False)).differences()[0] == (
        "gpu0: MIG mode is on until the next reset, then off, wanted off"
    )


def test_room_beside_what_stands() -> None:
    assert gpu().room()["1g.5gb"] == 7
    assert gpu(stands("3g.20gb", 0)).room() == {
        "1g.5gb": 3,
        "1g.5gb+me": 1,
        "1g.10gb": 2,
        "2g.10gb": 1,
        "3g.20gb": 1,
    }
    assert gpu(stands("7g.40gb", 0)).room() == {}
    assert "1g.5gb+me" not in gpu(stands("1g.5gb+me", 0)).room()
    assert gpu(*(stands("1g.5gb", slot) for slot in range(7))).room() == {}


def test_a_placement_is_what_the_table_says() -> None:
    way = next(words.choices(ask("2g@4"), BY_NAME, device="gpu3", compute=7))
    assert way == (Placement(device="gpu3", profile="2g.10gb", start=4, size=2),)
