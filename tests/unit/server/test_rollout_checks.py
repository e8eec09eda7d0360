"""What may be tried as a new version of a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from clover.config import RolloutConfig
from clover.errors import BadRequest
from clover.families import chosen, load_family
from clover.runtime.served import Served
from clover.server.rollout_checks import differences, find_version, has_changed, settings_of, why_no_room
from clover.types import Assignment, Placement, StepsSpec
from tests.support.family_folder import BASE, write


def folders(tmp_path: Path, changed: str = "") -> tuple[Any, Path]:
    """The stable version, and the folder of a new one with something changed."""
    write(tmp_path / "1")
    new = changed or BASE
    return load_family(str(tmp_path / "1")), write(tmp_path / "2", f'version = "2"\n{new}') or tmp_path / "2"


def test_a_version_is_what_has_the_same_tensors_and_variants(tmp_path: Path) -> None:
    stable, _ = folders(tmp_path)
    assert find_version(stable, str(tmp_path / "2"), "", "").version == "2"
    assert find_version(stable, str(tmp_path / "2"), "2024-11", "").version == "2024-11"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('name = "echo"', 'name = "other"', "another name"),
        ("shape = [3]", "shape = [3, 1]", "other outputs"),
        ("max_shape = [8, 2]", "max_shape = [9, 2]", "other inputs"),
        ('name = "only"', 'name = "small"', "other variants"),
        ("max_batch = 4", "max_batch = 8", "another max_batch"),
    ],
)
def test_a_folder_that_differs_is_refused_with_what_differs(tmp_path: Path, old: str, new: str, why: str) -> None:
    stable, _ = folders(tmp_path, BASE.replace(old, new, 1))
    with pytest.raises(BadRequest, match=why):
        find_version(stable, str(tmp_path / "2"), "", "")


def test_the_same_version_a_strange_one_and_strange_places_are_refused(tmp_path: Path) -> None:
    stable, _ = folders(tmp_path)
    for version, why in (("1", "served already"), ("a/b", "must be 1 to 64"), ("2@3", "must be 1 to 64")):
        with pytest.raises(BadRequest, match=why):
            find_version(stable, str(tmp_path / "2"), version, "")
    with pytest.raises(BadRequest, match="is no folder"):
        find_version(stable, str(tmp_path / "3"), "", "")
    with pytest.raises(BadRequest, match="does not lie in"):
        find_version(stable, str(tmp_path / "1" / ".." / ".."), "", "")
    with pytest.raises(BadRequest, match=r"rollout\.root"):
        find_version(stable, str(tmp_path / "2"), "", str(tmp_path / "1"))
    (tmp_path / "2" / "model.py").chmod(0o666)
    with pytest.raises(BadRequest, match="could run code"):
        find_version(stable, str(tmp_path / "2"), "", "")
    (tmp_path / "2" / "model.py").chmod(0o600)
    (tmp_path / "2").chmod(0o777)
    with pytest.raises(BadRequest, match="could run code"):
        find_version(stable, str(tmp_path / "2"), "", "")


@pytest.mark.parametrize(
    ("stable", "new", "why"),
    [
        (None, StepsSpec(), ["steps in the worker in one of them only"]),
        (StepsSpec(), StepsSpec(after=({"step": "softmax"},)), []),
        (
            StepsSpec(run="client"),
            StepsSpec(run="client", before=({"step": "normalise", "mean": 0.5},)),
            ["other steps in the client"],
        ),
        (StepsSpec(run="client"), None, ["other steps in the client"]),
    ],
)
def test_steps_may_differ_where_clients_do_not_run_them(
    tmp_path: Path, stable: StepsSpec | None, new: StepsSpec | None, why: list[str]
) -> None:
    spec, _ = folders(tmp_path)
    one, other = (msgspec.structs.replace(spec, steps=steps) for steps in (stable, new))
    assert list(differences(one, other)) == why


def test_files_that_change_are_noticed(tmp_path: Path) -> None:
    stable, folder = folders(tmp_path)
    new = find_version(stable, str(folder), "2024-11", "")
    assert not has_changed(new)
    (folder / "model.py").write_text("changed = 1\n")
    assert has_changed(new)
    (folder / "family.toml").write_text("[")
    assert has_changed(new)


def test_a_version_of_some_variants_only_has_them_alone(tmp_path: Path) -> None:
    more = (
        BASE
        + '\n[[variants]]\nname = "more"\nloader = "model:load"\n'
        + 'accuracy = { value = 1, metric = "top1", source = "x" }\n'
    )
    write(tmp_path / "1", more)
    folder = write(tmp_path / "2", f'version = "2"\n{more}')
    stable = chosen(load_family(str(tmp_path / "1")), ["more"])
    new = find_version(stable, str(folder), "", "", only=("more",))
    assert [variant.name for variant in new.variants] == ["more"]
    assert not has_changed(new)
    with pytest.raises(BadRequest, match="other variants"):
        find_version(stable, str(folder), "", "")
    (folder / "model.py").write_text("changed = 1\n")
    assert has_changed(new)


def test_settings_of_a_command_are_checked_like_those_of_the_server() -> None:
    assert settings_of(RolloutConfig(), {"percent": 5, "risk": 2.0}).percent == 5.0
    for given, why in (
        ({"percent": 55.0}, "<= 50"),
        ({"percent": "5"}, "percent"),
        ({"per_cent": 5.0}, "did you mean"),
        ({"root": "/"}, "no argument"),
    ):
        with pytest.raises(BadRequest, match=why):
            settings_of(RolloutConfig(), given)


class Slice:
    """A device of one slice with memory of its own, or the machine's (0)."""

    def __init__(self, memory: int, one_process: bool) -> None:
        self._memory, self._one_process = memory, one_process

    def shape(self) -> Any:
        return SimpleNamespace(one_process=self._one_process)

    def memory_bytes(self, placement: Placement) -> int:
        return self._memory


@pytest.mark.parametrize(
    ("memory", "held", "one_process", "free", "why"),
    [
        (0, 10**9, False, 4 * 10**9, ""),
        (0, 10**9, False, 10**9 // 2, "500 MB of the machine"),
        (0, 10**9, False, 0, ""),  # the kernel does not say
        (3 * 10**9, 10**9, False, 10**9, ""),
        (3 * 10**9, 2 * 10**9, False, 10**9, "3000 MB, of which 2000 MB"),
        (3 * 10**9, 10**9, True, 10**9, "one process at a time"),
    ],
)
def test_memory_has_to_hold_both(
    monkeypatch: pytest.MonkeyPatch, memory: int, held: int, one_process: bool, free: int, why: str
) -> None:
    monkeypatch.setattr("clover.server.rollout_checks.free_bytes", lambda: free)
    served = SimpleNamespace(fleet=SimpleNamespace(held_bytes=lambda _: held), slab=SimpleNamespace(memory=b""))
    place = Placement(device="d", profile="1g", start=0, size=1)
    deployment = [Assignment(placement=place, family="f", variant="v", backend="eager")] * 2
    found = why_no_room(cast(Served, served), {"d": cast(Any, Slice(memory, one_process))}, deployment)
    assert why in found
    assert bool(found) is bool(why)
