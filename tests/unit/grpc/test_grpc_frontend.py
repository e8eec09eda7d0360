"""The gRPC server on a socket: real calls through grpcio, reflection, limits, TLS, a taken port, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc
import grpc.aio
import uvloop
from grpc_reflection.v1alpha import reflection_pb2

from clover.config import LimitsConfig, ListenConfig, ServerConfig, TenantConfig, TokenConfig
from clover.errors import ConfigError, StartError
from clover.grants import Grants
from clover.grpc.frontend import GrpcFrontend
from clover.grpc.messages import ModelInferRequest, ModelInferResponse, message_class
from clover.http.audit import Operators
from clover.http.server_state import RequestIds
from clover.server import front_ends
from clover.tenants import Tenants
from tests.support.http_fakes import FakeModel, FakeView, family, make_certificate, tensor
from tests.support.servers import descriptors

INFER = "/inference.GRPCInferenceService/ModelInfer"


def model(**others: Any) -> FakeModel:
    return FakeModel(family("m", [tensor("IN", "UINT8", 4)], [tensor("OUT", "UINT8", 4)]), **others)


def message(raw: bytes = b"abcd") -> bytes:
    made = ModelInferRequest(model_name="m", raw_input_contents=[raw])
    made.inputs.add(name="IN", datatype="UINT8", shape=[len(raw) // 4, 4])
    return bytes(made.SerializeToString())


def served(
    view: FakeView,
    scene: Callable[[GrpcFrontend, Any], Coroutine[Any, Any, None]],
    limits: LimitsConfig | None = None,
    tenants: Tenants | None = None,
) -> None:
    """Run `scene` with a front end and a channel to it."""

    async def main() -> None:
        config = ServerConfig(limits=limits or LimitsConfig(), listen=ListenConfig(grpc_port=0))
        front = GrpcFrontend(view, config, RequestIds(), tenants)
        await front.start()
        try:
            async with grpc.aio.insecure_channel(front.target) as channel:
                await scene(front, channel)
        finally:
            await front.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def test_calls_on_a_socket() -> None:
    one = model(held=True)

    async def scene(front: GrpcFrontend, channel: Any) -> None:
        infer = channel.unary_unary(INFER)

        async def waiting() -> None:
            while not one.waiting:
                await asyncio.sleep(0)

        # An answer, with its receipt behind it.
        call = infer(message())
        asked = asyncio.ensure_future(_result(call))
        await waiting()
        one.run()
        assert ModelInferResponse.FromString(await asked).raw_output_contents[0] == b"abcd"
        assert "clover-receipt" in dict(await call.trailing_metadata())
        # A client that cancels frees its rows.
        call = infer(message())
        asked = asyncio.ensure_future(_result(call))
        await waiting()
        call.cancel()
        while one.open_tickets:
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        one.waiting.clear()
        # The deadline of the call is the request's, and grpcio ends the call then.
        error = await failure(infer(message(), timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while one.open_tickets:
            await asyncio.sleep(0)
        assert 0 < one.waiting.pop().timeout_ns <= 60_000_000  # gRPC sends it rounded up
        # What is too large is refused by its length.
        error = await failure(infer(message(bytes(4096))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4096" in error.details() or "larger than max" in error.details()
        error = await failure(channel.unary_unary("/inference.GRPCInferenceService/Nope")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        # Reflection knows the services and their messages, and needs a token where any call does.
        ask = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        ]
        services, *files = [answer async for answer in ask(iter(requests))]
        names = [found.name for found in services.list_services_response.service]
        assert names == sorted(names)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} < set(names)
        assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)
        refused = ask(iter(requests[:1]), metadata=(("authorization", "Bearer nobody"),))
        assert (await failure(_all(refused))).code() is grpc.StatusCode.UNAUTHENTICATED

    tenants = Tenants((TenantConfig(name="acme", token="secret"),))
    served(FakeView(one), scene, LimitsConfig(body_bytes=1024), tenants)


@pytest.mark.parametrize("algorithm", ["deflate", "gzip"])
def test_a_compressed_message_is_refused(algorithm: str) -> None:
    async def scene(front: GrpcFrontend, plain: Any) -> None:
        compression = {"deflate": grpc.Compression.Deflate, "gzip": grpc.Compression.Gzip}[algorithm]
        async with grpc.aio.insecure_channel(front.target, compression=compression) as channel:
            error = await failure(channel.unary_unary(INFER)(message(bytes(4096))))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == f"Compression algorithm '{algorithm}' is disabled."
        assert await plain.unary_unary(INFER)(message())

    served(FakeView(model()), scene)


def test_a_client_that_has_gone_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(front: GrpcFrontend, channel: Any) -> None:
        log = logging.getLogger("grpc._cython.cygrpc")
        for error in (grpc.aio.InternalError("execute_batch"), ValueError("a fault")):
            log.error("raised by servicer method", exc_info=error)

    served(FakeView(model()), scene)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a fault"]


async def _result(call: Any) -> Any:
    return await call


async def _all(call: Any) -> list[Any]:
    return [answer async for answer in call]


def test_a_drain_answers_what_was_received_and_refuses_what_comes_then() -> None:
    one = model(held=True)

    async def scene(front: GrpcFrontend, channel: Any) -> None:
        infer = channel.unary_unary(INFER)
        asked = asyncio.ensure_future(_result(infer(message())))
        idle = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        while not one.waiting or front.stats.open_calls < 2:
            await asyncio.sleep(0)
        drain = asyncio.create_task(front.drain(20.0))
        assert (await failure(_all(idle))).code() is grpc.StatusCode.UNAVAILABLE
        assert not drain.done()
        one.run()
        assert await asked
        assert await drain
        assert (await failure(infer(message()))).code() is grpc.StatusCode.UNAVAILABLE

    served(FakeView(one), scene)


def test_a_drain_that_takes_too_long_is_cut() -> None:
    one = model(held=True)

    async def scene(front: GrpcFrontend, channel: Any) -> None:
        asked = asyncio.ensure_future(_result(channel.unary_unary(INFER)(message())))
        while not one.waiting:
            await asyncio.sleep(0)
        assert not await front.drain(0.0)
        await asyncio.gather(asked, return_exceptions=True)
        assert one.open_tickets == 0

    served(FakeView(one), scene)


@pytest.mark.slow
def test_starts_and_stops_leave_nothing_behind_that_grows() -> None:
    async def nothing(front: GrpcFrontend, channel: Any) -> None:
        await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")

    counts = []
    for _ in range(9):
        served(FakeView(model()), nothing)
        counts.append(descriptors())
    assert counts[-1] - counts[0] <= 4, counts  # grpcio closes some a little later; one a start would be 8


def test_a_port_that_is_taken_is_an_error() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            config = ServerConfig(listen=ListenConfig(grpc_port=port))
            with pytest.raises(StartError, match="--grpc-port chooses another"):
                await GrpcFrontend(FakeView(model()), config, RequestIds()).start()

    asyncio.run(main())


def test_a_successor_binds_the_port_beside_and_a_stranger_does_not() -> None:
    async def main() -> None:
        first = GrpcFrontend(FakeView(model()), ServerConfig(listen=ListenConfig(grpc_port=0)), RequestIds())
        await first.start()
        port = int(first.target.rpartition(":")[2])
        config = ServerConfig(listen=ListenConfig(grpc_port=port))
        with pytest.raises(StartError, match="--grpc-port chooses another"):
            await GrpcFrontend(FakeView(model()), config, RequestIds()).start()
        second = GrpcFrontend(FakeView(model()), config, RequestIds())
        await second.start(port)
        assert second.target == first.target
        assert await first.drain(5.0)
        async with grpc.aio.insecure_channel(second.target) as channel:
            await asyncio.wait_for(channel.channel_ready(), 10.0)
        await second.close()
        await first.close()

    asyncio.run(main())


def test_a_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        listen = ListenConfig(grpc_port=0, tls_cert=str(tmp_path / "none"), tls_key=str(tmp_path / "none"))
        with pytest.raises(ConfigError, match=r"listen\.tls_cert"):
            await GrpcFrontend(FakeView(model()), ServerConfig(listen=listen), RequestIds()).start()

    asyncio.run(main())


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    front_ends.check_grpc()
    monkeypatch.setattr(front_ends, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"grpc is not installed: pip install 'clover-inference\[grpc\]'"):
        front_ends.check_grpc()


def test_a_server_without_the_port_does_not_import_grpcio() -> None:
    import subprocess
    import sys

    program = "import sys, clover.server, clover.server.engine; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ, timeout=60).returncode == 0


def test_connections_are_bounded_and_idle_ones_are_closed() -> None:
    async def scene(front: GrpcFrontend, channel: Any) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = front.target.rpartition(":")

        async def silent() -> None:
            """Connect, say nothing, and return once the server has hung up."""
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        start_s = loop.time()
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(silent())
        assert loop.time() - start_s < 10.0  # grpcio's own bound is two minutes
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        await live(b"")
        async with asyncio.timeout(20.0):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await live(b"")  # it connects anew

    served(FakeView(model()), scene, LimitsConfig(connections=2, head_s=0.1, idle_s=0.1))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_new_certificate_is_for_new_handshakes(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def main() -> None:
        listen = ListenConfig(grpc_port=0, tls_cert=str(cert), tls_key=str(key))
        front = GrpcFrontend(FakeView(model()), ServerConfig(listen=listen), RequestIds())
        await front.start()

        async def live(trusted: bytes, channel: Any = None) -> bool:
            trust = grpc.ssl_channel_credentials(trusted)
            made = channel or grpc.aio.secure_channel(front.target, trust)
            try:
                call = made.unary_unary("/inference.GRPCInferenceService/ServerLive")
                return bool(await call(b"", timeout=5))
            except grpc.aio.AioRpcError:
                return False
            finally:
                if channel is None:
                    await made.close()

        old = cert.read_bytes()
        async with grpc.aio.secure_channel(front.target, grpc.ssl_channel_credentials(old)) as opened:
            assert await live(old, opened)
            make_certificate(tmp_path)
            assert await live(old), "nothing was said yet"
            front.reload_certificate()
            assert await live(cert.read_bytes())
            assert not await live(old)
            assert await live(old, opened), "a connection that is open stays"
        await front.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_control_calls_are_noted_with_their_token() -> None:
    tokens = (
        TokenConfig(name="app", token="app-1", scopes=("infer",)),
        TokenConfig(name="ops", token="ops-1", scopes=("control",)),
    )
    operators = Operators(Grants("", tokens))
    view = FakeView(model())

    async def main() -> None:
        config = ServerConfig(listen=ListenConfig(grpc_port=0))
        front = GrpcFrontend(view, config, RequestIds(), None, operators)
        await front.start()
        name = message_class("RepositoryModelUnloadRequest")(model_name="m").SerializeToString()
        codes = []
        async with grpc.aio.insecure_channel(front.target) as channel:
            unload = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
            for token in ("ops-1", "app-1", "nobody-1", ""):
                metadata = (("authorization", f"Bearer {token}"),) if token else ()
                try:
                    await unload(name, metadata=metadata, timeout=5)
                    codes.append("OK")
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code().name)
        await front.close()
        assert codes == ["OK", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAUTHENTICATED"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    found = [(one.who, one.door, one.call, one.status) for one in operators.audit.records]
    assert found == [
        ("token ops", "grpc", "unload", 200),
        ("token app", "grpc", "unload", 403),
        ("unknown", "grpc", "unload", 401),
        ("unknown", "grpc", "unload", 401),
    ]
    assert operators.audit.records[0].model == "m"
