"""What an installed package adds without a fork: `tests/packages/plugins` has one of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import clover
from clover import backends, carbon, plugins, policies, profiles
from clover.carbon import CarbonConfig
from clover.errors import ConfigError
from tests.support.servers import run
from tests.support.toy_family import TOY, settings

PACKAGE = Path(__file__).parents[1] / "packages" / "plugins"


def forget() -> None:
    plugins.find.cache_clear()
    plugins.distributions.cache_clear()
    backends.BACKENDS.pop("ours", None)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is on the path, as if it were installed."""
    forget()
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield
    forget()


def test_each_kind_is_found_by_its_name() -> None:
    assert (plugins.names("policies"), plugins.names("carbon"), plugins.names("backends")) == (
        ("broken", "frugal"), ("rooftop",), ("ours",),
    )  # fmt: skip
    assert policies.build("frugal").name == "frugal"
    assert not policies.ships("frugal")
    assert (backends.get("ours").name, "ours" in backends.names()) == ("ours", True)
    source = carbon.build_source("rooftop:123", CarbonConfig())
    assert asyncio.run(source.read(0.0)).g_per_kwh == 123.0


def test_the_version_of_the_package_is_in_the_key_of_a_profile() -> None:
    assert profiles.versions(["ours"]) == {"ours/clover-plugins": "1.0"}


def test_what_is_not_there_names_what_is() -> None:
    with pytest.raises(ConfigError, match=r"unknown policy 'frugl' \(did you mean frugal\?\): .*frugal"):
        policies.build("frugl")
    with pytest.raises(ConfigError, match=r"unknown backend 'our'; one of .*ours"):
        backends.get("our")
    with pytest.raises(ConfigError, match=r"unknown carbon source 'roof', known: .*rooftop"):
        carbon.build_source("roof:1", CarbonConfig())


def test_what_cannot_be_imported_says_whose_it_is() -> None:
    with pytest.raises(ConfigError, match=r"broken of clover.policies, from clover-plugins: AttributeError"):
        policies.build("broken")


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[clover.policies]\nfrugal = other:Frugal\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"frugal of clover\.policies is in several packages"):
        policies.build("frugal")


@pytest.mark.slow
def test_a_server_uses_all_three(tmp_path: Path) -> None:
    async def main() -> None:
        own = {"policy": "frugal", "carbon": "rooftop:123", "backends": ("ours",), "profile": "wait"}
        async with clover.Server(TOY, **{**settings(tmp_path), **own}) as server:
            answer = await server.ainfer({"INPUT0": [[1.0, 0.0, 0.0, 2.0]]})
            assert (answer.receipt.variant, answer.receipt.intensity_g_per_kwh) == ("half", 123.0)
            profile = server.engine.served["toy"].profile
            assert profile is not None
            assert "ours" in {item.backend for item in (*profile.accuracy, *profile.left_out)}

    run(main())
