"""What HAProxy answers, taken apart, and its errors, which look like any other text."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.ingress.runtime import (
    IngressGone,
    IngressRefused,
    IngressServer,
    RuntimeApi,
    batches,
    check_reply,
    parse_info,
    parse_server_states,
    parse_statistics,
    quote,
    split_replies,
)
from clover.errors import ClusterError
from tests.support.fake_haproxy import FakeHAProxy, random_server
from tests.support.http_sockets import run

LINES = st.text(st.characters(codec="ascii", exclude_characters="\n"), min_size=1)
REPLIES = st.lists(st.lists(LINES, max_size=4).map("\n".join), min_size=1, max_size=8)


@given(REPLIES)
def test_replies_are_told_apart_by_their_empty_lines(replies: list[str]) -> None:
    """HAProxy ends each answer by an empty line; that of one without text is all there is."""
    text = "".join(f"{reply}\n\n" if reply else "\n" for reply in replies)
    assert split_replies(text, len(replies)) == replies


@given(REPLIES, st.data())
def test_a_connection_that_ends_early_is_an_error(replies: list[str], data: st.DataObject) -> None:
    text = "".join(f"{reply}\n\n" if reply else "\n" for reply in replies)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(IngressGone):
        split_replies(cut, len(replies))


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    """A text is understood, or is a ClusterError."""
    for parse in (parse_server_states, parse_statistics, parse_info, lambda given: split_replies(given, 2)):
        with contextlib.suppress(ClusterError):
            parse(text)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("add server b/s 127.0.0.1:1 check", "New server registered."),
        ("del server b/s", "Server deleted."),
        ("set server b/s weight 3", ""),
        ("set server b/s addr 10.0.0.1 port 9", "IP changed from '10.0.0.2' to '10.0.0.1' by 'stats socket command'"),
        ("set server b/s addr 10.0.0.1 port 9", "no need to change the addr, port changed from '8' to '9' by 'x'"),
        ("set server b/s addr 10.0.0.1 port 9", "nothing changed"),
        ("enable health b/s", ""),
    ],
)
def test_what_success_says(command: str, reply: str) -> None:
    check_reply(command, reply)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("add server b/s 127.0.0.1:1 check", "Already exists a server with the same name in backend."),
        ("add server b/s 127.0.0.1:1 check", ""),
        ("del server b/s", "Only servers in maintenance mode can be deleted."),
        ("set server b/s weight 3", "No such server."),
        ("set server b/s weight 300", "Absolute weight can only be between 0 and 256 inclusive."),
        ("enable health b/s", "Health checks are not configured on this server."),
        ("set server b/s state ready", "Permission denied"),
    ],
)
def test_what_is_no_success_is_refused_with_its_text(command: str, reply: str) -> None:
    with pytest.raises(IngressRefused, match=reply or "why"):
        check_reply(command, reply)


@pytest.mark.parametrize("command", ["", "a;b", "a\nb", "show stat\r", "a\\b", "a\x00"])
def test_a_command_is_one_command(command: str) -> None:
    with pytest.raises(ClusterError, match="no single command"):
        quote(command)


@given(st.lists(st.text("ab c", min_size=1, max_size=5000), max_size=30))
def test_batches_keep_the_order_and_fit_into_a_line(commands: list[str]) -> None:
    found = batches(commands)
    assert [command for batch in found for command in batch] == commands
    assert all(len(";".join(batch)) < 12 << 10 for batch in found)


@given(st.integers())
def test_servers_are_read_as_they_were_written(seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "n-1.b", "c_2"]
    backends = {
        backend: {name: random_server(rng, ("127.0.0.1", "::1")) for name in rng.sample(names, rng.randint(1, 3))}
        for backend in rng.sample(["http:n", "grpc:n", "http:n:f"], rng.randint(0, 3))
    }
    found = parse_server_states(FakeHAProxy(backends).run("show servers state"))
    assert found.keys() == backends.keys()
    for backend, servers in backends.items():
        for name, server in servers.items():
            assert found[backend][name] == IngressServer(
                number=server.number,
                host=server.host,
                port=server.port,
                weight=server.weight,
                state=server.state,
                up=server.up,
                checked=server.checked,
                secure=server.secure,
                check_host=server.check_host.replace("-", ""),
                check_port=server.check_port,
            )


def test_statistics_are_grouped_and_typed() -> None:
    text = "B.3.0.0.pxname.1:KNS:str:http:DE\nB.3.0.48.req_tot.1:MCP:u64:12\nS.3.1.0.pxname.1:KNS:str:http:DE\n"
    assert parse_statistics(text) == [{"pxname": "http:DE", "req_tot": 12}, {"pxname": "http:DE"}]
    with pytest.raises(ClusterError, match=r"answered 'show stat' with the line 'B\.3'"):
        parse_statistics("B.3\n")


def test_many_commands_are_answered_over_a_socket(tmp_path: Path) -> None:
    async def main() -> None:
        haproxy = FakeHAProxy({"http:DE": {}})
        api = RuntimeApi(str(tmp_path / "s"))
        async with haproxy.listening(tmp_path / "s"):
            names = [f"node-{number:04}" for number in range(500)]
            await api.change([f"add server http:DE/{name} 127.0.0.1:80" for name in names])
            assert list((await api.server_states())["http:DE"]) == names
            with pytest.raises(IngressRefused, match=r"'set server http:DE/x weight 1': No such server\."):
                await api.change(["set server http:DE/x weight 1", "set server http:DE/node-0003 weight 9"])
            # The others are carried out all the same.
            assert (await api.server_states())["http:DE"]["node-0003"].weight == 9

    run(main())


@pytest.mark.parametrize("piece", [1, 7])
def test_answers_that_come_in_pieces(tmp_path: Path, piece: int) -> None:
    async def main() -> None:
        haproxy = FakeHAProxy({"b": {"a": random_server(random.Random(0))}}, piece=piece)
        api = RuntimeApi(str(tmp_path / "s"))
        async with haproxy.listening(tmp_path / "s"):
            expected = [haproxy.run("show info").rstrip("\n"), "", "No such server."]
            assert await api.replies(["show info", "set server b/a weight 3", "del server b/x"]) == expected
            assert (await api.server_states())["b"]["a"].weight == 3

    run(main())


def test_where_nobody_answers(tmp_path: Path) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def main() -> None:
        left = asyncio.Event()

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the client gives up
            writer.close()
            left.set()

        api = RuntimeApi(str(tmp_path / "s"))
        with pytest.raises(IngressGone, match="no haproxy answers"):
            await api.info()
        async with await asyncio.start_unix_server(silent, tmp_path / "s"):
            with pytest.raises(IngressGone):
                await api.info()
        async with await asyncio.start_unix_server(mute, tmp_path / "t"):
            with pytest.raises(ClusterError, match=r"did not answer within 0\.01 s"):
                await RuntimeApi(str(tmp_path / "t"), answer_s=0.01).info()
            await left.wait()

    run(main())
