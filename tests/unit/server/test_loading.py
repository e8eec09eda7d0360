"""Another version in the place of the one that is served: what is left of the one before."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from clover.errors import NotFound
from clover.families import load_family
from clover.families.published import caution
from clover.server.loading import Loading
from clover.types import PublishedWeights
from tests.support.router_fixture import House

FAMILIES = Path(__file__).parents[2] / "families"


def test_answers_of_the_version_before_take_no_labels_and_are_in_no_cache() -> None:
    house = House(cache_answers=1.0)
    (worker,) = house.route(0)
    ticket = house.ask(again=5.0)
    house.complete(worker)
    house.router.remember(7, ticket)
    house.router.close(ticket)
    router = house.router
    assert router.feedback.knows(7)

    async def stop() -> None:
        return

    async def release(name: str) -> None:
        router.route([], router.state.lanes.routing)

    async def adopt(*_: Any) -> None:
        house.route(0)

    released: Any = SimpleNamespace(release=release, adopt=adopt, context=SimpleNamespace(families={}))
    loading = Loading(released, {}, drain_s=1.0, changed=lambda: None)
    served: Any = SimpleNamespace(
        name="toy",
        spec=house.spec,
        profile="a profile",
        drawn={},
        config=None,
        router=router,
        fleet=SimpleNamespace(stop=stop),
        use=lambda profile, drawn: None,
    )
    new = msgspec.structs.replace(house.spec, version="2")
    asyncio.run(loading.replace(served, new, cast(Any, "a profile")))
    assert (served.spec.version, router.spec.version, served.state, router.closed_reason) == ("2", "2", "READY", "")
    with pytest.raises(NotFound):
        router.count_labels(7, [0], "someone")
    again = house.ask(again=5.0)
    assert again.recalled is None
    router.close(again)
    router.stop()
    house.slab.close()


def test_what_is_untrained_is_said_where_its_workers_start(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def adopt(*_: Any) -> None:
        return

    toy = msgspec.structs.replace(load_family(str(FAMILIES / "toy")), evaluation=None)
    weights = PublishedWeights(url="https://example.org/a/weights.pth", sha256="2cf24dba")
    variants = (msgspec.structs.replace(toy.variants[0], untrained=True, published=weights), *toy.variants[1:])
    router = SimpleNamespace(closed_reason="", decline_stranded=lambda reason: None)
    served: Any = SimpleNamespace(spec=toy, profile="a profile", fleet=None, config=None, router=router)
    loading = Loading(cast(Any, SimpleNamespace(adopt=adopt)), {}, drain_s=1.0, changed=lambda: None)
    asyncio.run(loading.deploy(served))
    assert caplog.messages == []
    served.spec = msgspec.structs.replace(toy, variants=variants)
    asyncio.run(loading.deploy(served))
    (line,) = caplog.messages
    assert line.startswith(f"{variants[0].name} of toy: UNTRAINED, built with random weights. Their answers mean not")
    assert line.endswith("accuracy counts as 0"), "there is no page of this family that says how to fetch them"
    page = tmp_path / "README.md"
    page.touch()
    told = caution(msgspec.structs.replace(served.spec, folder=str(tmp_path)))
    assert told.endswith(f"accuracy counts as 0; {page} says how to fetch the published weights")
