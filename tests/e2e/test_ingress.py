"""A real HAProxy before small servers that stand for nodes: weights, failures, drains, and what it lets through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clover.cluster.ingress.config import IngressOrigin, IngressSettings, render
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.cluster.ingress.process import find_program
from clover.cluster.ingress.runtime import RuntimeApi
from clover.errors import ClusterError
from tests.support.ingress_fixture import upstream
from tests.support.ingress_nodes import FakeNode, IngressClient, count, free_ports
from tests.support.servers import ROOT, run, serve, until

try:
    find_program()
except ClusterError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SERVICE = "/inference.GRPCInferenceService"
SHORT = 4096
"""The longest body that is sent again, here."""


@dataclass
class Scene:
    """An ingress of two regions and the nodes behind it."""

    ingress: HAProxyIngress
    north: int
    south: int
    grpc: int
    nodes: dict[str, FakeNode]

    async def ready(self) -> None:
        """Wait until HAProxy's checks find every node."""
        for _ in range(400):
            healthy = await self.ingress.nodes()
            if all(healthy.get(name) for name in self.nodes):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"not all nodes are ready: {await self.ingress.nodes()}")


def settings(folder: Path, **changes: Any) -> IngressSettings:
    north, south, grpc = free_ports(3)
    origins = (
        IngressOrigin(name="north", listen=f"127.0.0.1:{north}", listen_grpc=f"127.0.0.1:{grpc}"),
        IngressOrigin(name="south", listen=f"127.0.0.1:{south}"),
    )
    given: dict[str, Any] = {
        "folder": str(folder / "ingress"),
        "origins": origins,
        "body_bytes": SHORT,
        "threads": 1,
        "check_s": 0.2,
    }
    return IngressSettings(**(given | changes))


def port_of(place: str) -> int:
    return int(place.rpartition(":")[2])


@contextlib.asynccontextmanager
async def scene(folder: Path, *names: str, **changes: Any) -> AsyncIterator[Scene]:
    own = settings(folder, **changes)
    ingress = HAProxyIngress(own)
    nodes: dict[str, FakeNode] = {}
    try:
        assert not await ingress.start()
        north, south = own.origins
        found = Scene(ingress, port_of(north.listen), port_of(south.listen), port_of(north.listen_grpc), nodes)
        for name in names:
            nodes[name] = await FakeNode(name).start()
            await ingress.admit(name, nodes[name].url, "")
        await ingress.weigh("north", dict.fromkeys(names, 1.0))
        await found.ready()
        yield found
    finally:
        await ingress.stop(drain_s=0)
        for node in nodes.values():
            await node.stop()


def near(found: Counter[str], expected: dict[str, int]) -> bool:
    """Return whether each node answered what round robin gives it, which is off by far less than chance would be: by
    where in its turn it stood, and by what is tried twice."""
    return found.keys() == expected.keys() and all(abs(found[name] - number) <= 3 for name, number in expected.items())


def test_rows_follow_the_weights_of_their_origin(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b", "c") as it:
            await it.ingress.weigh("north", {"a": 0.6, "b": 0.2, "c": 0.2})
            await it.ingress.weigh("south", {"c": 1.0})
            found = await count(it.north, 300)
            assert near(found, {"a": 180, "b": 60, "c": 60})
            assert await count(it.south, 30) == {"c": 30}
            requests = await it.ingress.origin_requests()
            assert requests == {"north": dict(found), "south": {"a": 0, "b": 0, "c": 30}}
            # At once, with connections that stay.
            await it.ingress.weigh("north", {"b": 1.0})
            assert await count(it.north, 50) == {"b": 50}
            await it.ingress.weigh("north", {})
            client = IngressClient(it.north)
            reply = await client.infer()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json() == {"error": "no node is ready"}
            await client.close()

    run(main())


@pytest.mark.slow
def test_a_node_that_is_killed_under_load_costs_no_request(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a") as it:
            (port,) = free_ports(1)
            arguments = ("-m", "tests.support.ingress_nodes", "b", str(port))
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT)
            try:
                await it.ingress.admit("b", f"http://127.0.0.1:{port}", "")
                await it.ingress.weigh("north", {"a": 1, "b": 1})
                for _ in range(400):
                    if await it.ingress.healthy("b"):
                        break
                    await asyncio.sleep(0.02)
                load = asyncio.create_task(count(it.north, 3000, connections=16))
                await until(lambda: it.nodes["a"].answered > 200)
                process.kill()
                found = await load
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            assert found.keys() == {"a", "b"}
            assert found["b"] >= 100
            assert found.total() == 3000
            # And nothing is sent there any more.
            for _ in range(400):
                if not await it.ingress.healthy("b"):
                    break
                await asyncio.sleep(0.02)
            assert not await it.ingress.healthy("b")

    run(main())


def test_what_fails_before_its_answer_begins_is_sent_to_another_node(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            broken = it.nodes["b"]
            broken.status = 503  # a server that drains, before the checks have seen it
            assert await count(it.north, 40) == {"a": 40}
            broken.status, broken.cut = 200, True  # one that dies with requests in it
            assert await count(it.north, 40) == {"a": 40}
            broken.cut = False
            client = IngressClient(it.north)
            # As long as a body may be, and the longest that is passed on without being kept.
            for node in it.nodes.values():
                node.cut = node is broken
            for length in (SHORT, SHORT - 1, 1):
                assert [(await client.infer(b"x" * length)).json()["bytes"] for _ in range(4)] == [length] * 4
            replies = [(await client.infer(b"x" * 500_000)).status for _ in range(4)]
            assert 200 in replies
            assert {*replies} <= {200, 502, 503}
            # What no node takes is the node's own answer.
            broken.cut = False
            for node in it.nodes.values():
                node.status = 503
            assert (await client.infer()).status == 503
            await client.close()

    run(main())


def test_a_node_that_is_not_ready_gets_nothing(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            it.nodes["b"].ready = False
            while await count(it.north, 20) != {"a": 20}:  # each backend finds it out by itself
                await asyncio.sleep(0.02)
            it.nodes["b"].ready = True
            await it.ready()
            assert near(await count(it.north, 20), {"a": 10, "b": 10})

    run(main())


def test_a_drained_node_answers_what_it_has(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            it.nodes["b"].held = asyncio.Event()
            await it.ingress.weigh("north", {"b": 1})
            client = IngressClient(it.north)
            waiting = asyncio.create_task(client.infer())
            await until(lambda: it.nodes["b"].waiting == 1)
            await it.ingress.weigh("north", {"a": 1, "b": 1})
            await it.ingress.drain("b")
            assert await it.ingress.open_connections("b") == 1
            assert await count(it.north, 20) == {"a": 20}
            await it.ingress.remove("b")  # gets nothing, and has its answer all the same
            assert await count(it.north, 20) == {"a": 20}
            it.nodes["b"].held.set()
            assert (await waiting).json()["node"] == "b"
            await client.close()

    run(main())


def test_what_passes_and_what_a_node_sees(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a") as it:
            client = IngressClient(it.north)
            forged = (
                "X-Clover-Origin: south",
                "x-clover-origin: east",
                "x-request-id: mine",
                "Authorization: Bearer t",
            )
            reply = await client.infer(b"{}", *forged)
            seen = [tuple(pair) for pair in reply.json()["headers"]]  # type: ignore[attr-defined]
            assert [pair for pair in seen if pair[0] == "x-clover-origin"] == [("x-clover-origin", "north")]
            assert {("host", "localhost"), ("authorization", "Bearer t"), ("x-request-id", "mine")} < {*seen}
            assert {name for name, _ in seen} == {
                *("host", "authorization", "x-request-id", "content-length", "x-clover-origin"),
            }
            assert reply.headers.keys() == {"x-request-id", "clover-receipt", "content-length"}
            assert reply.headers["x-request-id"] == "mine"
            assert (await client.infer()).headers["x-request-id"] == "aaaaaaaaaaaa-2-tag"
            for path in (
                "/v2/clover/pin",
                "/v2/repository/models/toy/load",
                "/metrics",
                "/dashboard",
                "/v2/clover/state",
            ):
                refused = await client.send("POST", path)
                assert (refused.status, [*refused.json()]) == (403, ["error"])
            for path in ("/v2", "/v2/models/toy", "/v2/health/live", "/v1/models", "/v2/repository/index"):
                assert (await client.send("GET", path)).status == 200
            for path in ("/v1/files", "/v1/batches/batch_1"):
                refused = await client.send("GET", path)
                assert (refused.status, refused.json()["error"]["code"]) == (501, "501")
            await client.close()
            foreign = await raw(it.north, b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert foreign.startswith(b"HTTP/1.1 421 ")
            bad = await raw(it.north, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n")
            assert bad.startswith(b"HTTP/1.1 400 ")

    run(main())


def test_labels_reach_the_node_that_gave_the_answer(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b", "c") as it:
            client = IngressClient(it.north)
            unnamed = [(await client.infer()) for _ in range(3)]
            ids = {str(reply.json()["node"]): reply.headers["x-request-id"] for reply in unnamed}
            # A client that names its requests like another node's ids misleads nobody.
            named = [(await client.infer(b"{}", "x-request-id: aaaaaaaaaaaa-9-tag")) for _ in range(3)]
            for reply in named:
                receipt = reply.headers["clover-receipt"]
                ids[f"{reply.json()['node']} again"] = receipt.partition('feedback="')[2].strip('"')
            assert len(ids) == 6
            for node, identity in [*ids.items(), *ids.items()]:
                body = f'{{"id": "{identity}", "labels": [1]}}'.encode()
                reply = await client.send("POST", "/v2/models/toy/feedback", body)
                assert reply.json()["node"] == node[0]
            await client.close()

    run(main())


def test_metrics_of_haproxy_for_prometheus(short_path: Path) -> None:
    (port,) = free_ports(1)

    async def main() -> None:
        async with scene(short_path, "a", listen_metrics=f"127.0.0.1:{port}") as it:
            await count(it.north, 3)
            text = await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b'haproxy_backend_http_requests_total{proxy="http:north"} 3\n' in text
            assert (await raw(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 404 ")

    run(main())


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_haproxy_that_is_killed_comes_back_with_the_last_weights(short_path: Path) -> None:
    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            await it.ingress.weigh("north", {"a": 3, "b": 1})
            await it.ingress.weigh("south", {"a": 1, "b": 1})
            await it.ingress.drain("b")
            pid = int((await it.ingress.information())["Pid"])
            os.kill(pid, signal.SIGKILL)
            await until(lambda: it.ingress.restarts == 1)
            await it.ready()
            assert await count(it.north, 20) == await count(it.south, 20) == {"a": 20}
            await it.ingress.admit("b", it.nodes["b"].url, "")
            assert near(await count(it.north, 40), {"a": 30, "b": 10})

    run(main())


def test_what_haproxy_lost_is_given_back(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.cluster.ingress.haproxy._LOOK_S", 0.05)

    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            by_hand = RuntimeApi(str(Path(it.ingress.settings.folder) / "haproxy.sock"))
            await by_hand.change(["set server http:north/a weight 0", "set server http:north/b state maint"])
            with contextlib.suppress(ClusterError):  # connections that are kept may hold it up
                await by_hand.change(["del server http:north/b"])
            while not near(await count(it.north, 20), {"a": 10, "b": 10}):
                await asyncio.sleep(0.02)

    run(main())


def test_a_controller_that_comes_anew_finds_the_nodes_and_weights(short_path: Path) -> None:
    """One with the same settings takes HAProxy over as it is; one with others replaces it and refuses no request."""

    async def main() -> None:
        async with scene(short_path, "a", "b") as it:
            await it.ingress.weigh("north", {"a": 3, "b": 1})
            await it.ingress.close()
            second = HAProxyIngress(it.ingress.settings)
            assert await second.start()
            assert second.weights() == {"north": {"a": 256, "b": 85}}
            await second.close()
            load = asyncio.create_task(count(it.north, 600, connections=4))
            await until(lambda: it.nodes["a"].answered > 20)
            it.ingress = third = HAProxyIngress(settings_with(it.ingress.settings, retries=1))
            try:
                assert not await third.start()
                found = await load
                assert found.keys() == {"a", "b"}
                assert near(await count(it.north, 40), {"a": 30, "b": 10})
            finally:
                await third.stop(drain_s=0)

    run(main())


def settings_with(own: IngressSettings, **changes: Any) -> IngressSettings:
    return IngressSettings(**({name: getattr(own, name) for name in own.__struct_fields__} | changes))


def test_an_address_that_is_taken_is_an_error_that_says_so(short_path: Path) -> None:
    async def main() -> None:
        node = await FakeNode("a").start()
        own = settings(short_path, origins=(IngressOrigin(name="north", listen=f"127.0.0.1:{node.port}"),))
        with pytest.raises(ClusterError, match=r"haproxy does not start: .*cannot bind"):
            await HAProxyIngress(own).start()
        with pytest.raises(ClusterError, match="was not started"):
            await HAProxyIngress(own).weigh("north", {})
        await node.stop()

    run(main())


def certificate(folder: Path) -> Path:
    """Return a certificate of localhost with its key, in one file as HAProxy has it."""
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=30)
    chain.write_text(chain.read_text() + key.read_text())
    return chain


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_haproxy_takes_every_form_of_the_configuration_without_a_warning(short_path: Path) -> None:
    chain = str(certificate(short_path))
    full = {
        "tls_cert": chain,
        "ca_file": chain,
        "token": f"file:{chain}",
        "families": ("toy", "fashion.v2"),
        "listen_metrics": "127.0.0.1:1",
        "allowed_hosts": ("inference.example", "::1"),
        "threads": 2,
    }
    nodes = [upstream("a"), upstream("b", host="::1", grpc_port=0, grpc_host="")]
    secure = [upstream("a", secure=True)]
    for changes, members in (({}, []), ({}, nodes), (full, nodes), (full, secure)):
        file = short_path / "haproxy.cfg"
        own = settings(short_path, **changes)
        file.write_text(render(own, members, {"http:north": {"a": 3}}, str(short_path / "s")))
        checked = subprocess.run(
            [find_program(), "-c", "-f", file], capture_output=True, text=True, env={"CLOVER_INGRESS_TOKEN": "t"}
        )
        assert checked.returncode == 0, checked.stderr
        assert not re.search(r"WARNING|ALERT", checked.stderr), checked.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls_for_clients_and_to_nodes_and_the_token_of_checks(short_path: Path) -> None:
    chain, token = str(certificate(short_path)), short_path / "token"
    token.write_text("the-token\n")

    async def main() -> None:
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(chain)
        client_side = ssl.create_default_context(cafile=chain)
        async with scene(short_path, tls_cert=chain, ca_file=chain, token=f"file:{token}") as it:
            it.nodes["a"] = await FakeNode("a").start(context=own)
            await it.ingress.admit("a", it.nodes["a"].url.replace("http", "https"), "")
            await it.ingress.weigh("north", {"a": 1})
            await it.ready()
            assert it.nodes["a"].token == "Bearer the-token"
            assert "the-token" not in (Path(it.ingress.settings.folder) / "haproxy.cfg").read_text()
            client = IngressClient(it.north, client_side)
            assert (await client.infer()).json()["node"] == "a"
            token.write_text("the-next-token\n")
            await it.ingress.reload()
            await until(lambda: it.nodes["a"].token == "Bearer the-next-token")
            assert (await client.infer()).json()["node"] == "a"
            await client.close()
            await it.ingress.close()
            token.unlink()
            with pytest.raises(ClusterError, match=r"cannot read .*token: No such file"):
                await it.ingress.start()
            token.write_text("the-next-token\n")
            assert await it.ingress.start()

    run(main())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_zygotes")
def test_a_real_server_over_grpc_and_http(short_path: Path) -> None:
    """Two origins, and a family that is shared by itself: over gRPC its name is read from the message."""
    grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from clover.grpc.messages import ModelInferRequest, ModelInferResponse

    request = ModelInferRequest(model_name="simple", id="mine")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(bytes(64))
    message = request.SerializeToString()

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def main() -> None:
        async with (
            scene(short_path, families=("simple",)) as it,
            serve("simple", short_path, variant="exact", http=True, grpc_port=0) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{it.grpc}") as channel,
        ):
            await it.ingress.admit("a", server.url, server.grpc_target)
            await it.ingress.weigh_family("north", "simple", {"a": 1.0})
            while not await it.ingress.healthy("a"):
                await asyncio.sleep(0.02)
            infer = channel.unary_unary(f"{SERVICE}/ModelInfer")
            call = infer(message, metadata=(("x-request-id", "mine"), ("x-clover-origin", "south")))
            assert ModelInferResponse.FromString(await call).id == "mine"
            ends = dict(await call.trailing_metadata())
            assert ends["x-request-id"] == "mine"
            assert ends["clover-receipt"].startswith('variant="exact", ')
            # A client that is in the midst of its requests.
            stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(silent())
            with pytest.raises(grpc.aio.AioRpcError) as nobody:  # no family's: goes by the origin's weights
                await stream.read()
            assert nobody.value.code() is grpc.StatusCode.UNAVAILABLE
            assert nobody.value.details() == "no node is ready"
            await it.ingress.weigh("north", {"a": 1.0})
            stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([message, message]))
            assert len([answer async for answer in stream]) == 2
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"{SERVICE}/RepositoryModelUnload")(b"")
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            client = IngressClient(it.north)
            assert (await client.send("GET", "/v2/models/simple")).json()["name"] == "simple"
            assert (await client.send("GET", "/v2/models/simple/ready")).status == 200
            await client.close()

    run(main())
