"""From whatever HAProxy has to what is wanted, through a HAProxy that only keeps books."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from clover.cluster.ingress.config import backends
from clover.cluster.ingress.runtime import IngressServer, check_reply, parse_server_states
from clover.cluster.ingress.state import (
    LARGEST_WEIGHT,
    WantedIngress,
    differences,
    leftovers,
    settled,
    wanted_of,
    weights_key,
    whole_weights,
)
from clover.errors import ClusterError
from tests.support.fake_haproxy import FakeHAProxy, FakeServer, random_server
from tests.support.ingress_fixture import settings, upstream

SETTINGS = settings(families=("fashion",), ca_file="/ca.pem")
NAMES = ["a", "b", "c"]
KEYS = ["north", "south", "north:fashion"]


def some_state(rng: random.Random) -> dict[str, dict[str, FakeServer]]:
    """Return servers in any state, in any backends."""
    return {one.name: {name: random_server(rng) for name in NAMES if rng.random() < 0.5} for one in backends(SETTINGS)}


def some_wish(rng: random.Random) -> WantedIngress:
    """Return what somebody may want: nodes, some of them draining, with weights."""
    nodes = {
        name: upstream(
            name,
            secure=rng.random() < 0.5,
            port=rng.choice((80, 81)),
            **rng.choice(({}, {"grpc_host": "", "grpc_port": 0})),
        )
        for name in NAMES
        if rng.random() < 0.6
    }
    return WantedIngress(
        upstreams=nodes,
        draining=frozenset(name for name in nodes if rng.random() < 0.3),
        weights={
            key: {name: rng.randint(1, 256) for name in nodes if rng.random() < 0.7}
            for key in KEYS
            if rng.random() < 0.7
        },
    )


def converge(haproxy: FakeHAProxy, wish: WantedIngress) -> int:
    """Run commands until there are no more, and return in how many rounds."""
    for round_ in range(4):
        servers = parse_server_states(haproxy.run("show servers state"))
        commands = differences(SETTINGS, wish, servers)
        gone = [f"del server {server}" for server in leftovers(SETTINGS, wish, servers)]
        if not commands and not gone:
            return round_
        for command in [*commands, *gone]:
            check_reply(command, haproxy.run(command).strip())
    raise AssertionError("it does not come to an end")


@given(st.integers())
def test_whatever_is_there_becomes_what_is_wanted(seed: int) -> None:
    rng = random.Random(seed)
    wish, haproxy = some_wish(rng), FakeHAProxy(some_state(rng))
    assert converge(haproxy, wish) <= 2
    for backend in backends(SETTINGS):
        servers = haproxy.backends[backend.name]
        expected = {name: node for name, node in wish.upstreams.items() if not backend.grpc or node.grpc_port}
        assert servers.keys() == expected.keys()
        for name, node in expected.items():
            server = servers[name]
            assert server.weight == wish.shares(backend).get(name, 0)
            assert server.state == ("drain" if name in wish.draining else "ready")
            assert server.checked
            assert server.secure == node.secure
            if backend.grpc:
                assert (server.host, server.port) == (node.grpc_host, node.grpc_port)
                assert (server.check_host.replace("-", server.host), server.check_port) == (node.host, node.port)
            else:
                assert (server.host, server.port) == (node.host, node.port)


@given(st.integers())
def test_no_node_gets_rows_before_its_check_has_succeeded(seed: int) -> None:
    """HAProxy takes one that is new, back from maintenance or moved for healthy until it is checked."""
    rng = random.Random(seed)
    wish, found = some_wish(rng), some_state(rng)
    for servers in found.values():
        for server in servers.values():
            server.checked, server.up = True, server.state != "maint"
    haproxy = FakeHAProxy(found)
    addresses = {
        (backend, name): (server.host, server.port, server.secure)
        for backend, servers in found.items()
        for name, server in servers.items()
        if server.state != "maint"
    }
    converge(haproxy, wish)
    assert not haproxy.unchecked
    for backend, servers in haproxy.backends.items():
        for name, server in servers.items():
            same = addresses.get((backend, name)) == (server.host, server.port, server.secure)
            assert same or not server.up


@given(st.integers())
def test_a_controller_that_comes_anew_finds_what_was_wanted(seed: int) -> None:
    wish = some_wish(random.Random(seed))
    haproxy = FakeHAProxy({backend.name: {} for backend in backends(SETTINGS)})
    converge(haproxy, wish)
    servers = parse_server_states(haproxy.run("show servers state"))
    servers = {backend.name: servers.get(backend.name, {}) for backend in backends(SETTINGS)}
    found = wanted_of(SETTINGS, servers)
    assert found.upstreams == wish.upstreams
    assert found.draining == wish.draining
    for backend in backends(SETTINGS):
        if not backend.grpc:  # whose weights are the same, but for nodes without gRPC
            assert found.shares(backend) == wish.shares(backend)
    assert differences(SETTINGS, found, servers) == []


def plain(server: IngressServer) -> IngressServer:
    """Return a server without what only HAProxy knows; one that is checked at its own address says so."""
    return structs.replace(server, number=0, up=True, check_host=server.check_host or server.host)


@given(st.integers())
def test_what_is_noted_after_commands_is_what_haproxy_has(seed: int) -> None:
    """But for numbers, and for what its checks found."""
    rng = random.Random(seed)
    wish, haproxy = some_wish(rng), FakeHAProxy(some_state(rng))
    before = parse_server_states(haproxy.run("show servers state"))
    names = rng.sample(NAMES, rng.randint(0, 3))
    for command in differences(SETTINGS, wish, before, names):
        check_reply(command, haproxy.run(command).strip())
    noted = settled(SETTINGS, wish, before, names)
    found = parse_server_states(haproxy.run("show servers state"))
    for backend in backends(SETTINGS):
        expected = found.get(backend.name, {})
        assert noted[backend.name].keys() == expected.keys()
        for name, server in noted[backend.name].items():
            assert plain(server) == plain(expected[name])


def test_a_family_follows_its_origin_until_it_has_weights_of_its_own() -> None:
    north, family = backends(SETTINGS)[:2]
    wish = WantedIngress(weights={"north": {"a": 1}})
    assert wish.shares(family) == wish.shares(north) == {"a": 1}
    wish = WantedIngress(weights={"north": {"a": 1}, weights_key("north", "fashion"): {}})
    assert wish.shares(family) == {}


SHARES = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1e12) | st.floats(1e-300, 1e-290), max_size=40)


@given(SHARES)
def test_weights_are_in_proportion_and_no_share_is_lost(shares: dict[str, float]) -> None:
    weights = whole_weights(shares)
    assert weights.keys() == shares.keys()
    most = max(shares.values(), default=0.0)
    for name, share in shares.items():
        assert 0 <= weights[name] <= LARGEST_WEIGHT
        assert (weights[name] > 0) is (share > 0)
        if share:
            quota = share / most * LARGEST_WEIGHT
            assert weights[name] == 1 if quota < 1 else abs(weights[name] - quota) < 1
        if share and share == most:
            assert weights[name] == LARGEST_WEIGHT


@given(SHARES)
def test_a_larger_share_never_has_a_smaller_weight(shares: dict[str, float]) -> None:
    weights = whole_weights(shares)
    ordered = sorted(shares, key=lambda name: shares[name])
    for smaller, larger in itertools.pairwise(ordered):
        assert shares[smaller] == shares[larger] or weights[smaller] <= weights[larger]


@given(SHARES)
def test_largest_remainders_keep_the_sum(shares: dict[str, float]) -> None:
    """But for those that would have had less than 1."""
    weights, most = whole_weights(shares), max(shares.values(), default=0.0)
    quotas = {name: share / most * LARGEST_WEIGHT for name, share in shares.items() if share}
    if all(quota >= 1 for quota in quotas.values()):
        assert sum(weights.values()) == round(math.fsum(quotas.values()))


def test_equal_shares_have_equal_weights_in_any_unit() -> None:
    assert whole_weights({"a": 0.1, "b": 0.1, "c": 0.1}) == {"a": 256, "b": 256, "c": 256}
    assert whole_weights({"a": 300.0, "b": 100.0}) == {"a": 256, "b": 85}
    assert whole_weights({"a": 0, "b": 0}) == {"a": 0, "b": 0}
    assert whole_weights({}) == {}


@pytest.mark.parametrize("share", [-1.0, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ClusterError, match="share of node b"):
        whole_weights({"a": 1.0, "b": share})
