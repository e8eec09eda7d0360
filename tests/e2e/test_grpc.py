"""A whole server over gRPC: from a real worker's answer with TLS and tokens to metrics, and to a drain."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2

from clover.config import ServerConfig, TenantConfig
from clover.grpc.messages import ModelInferRequest, ModelInferResponse, message_class
from tests.support.servers import run, serve

SERVICE = "/inference.GRPCInferenceService/"
TENANT = (("authorization", "Bearer secret-of-acme"),)
ROWS = np.arange(16, dtype=np.int32)[np.newaxis]


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of localhost and its key."""
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=30)
    return chain, key


def request(rows: int = 1) -> bytes:
    made = ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        made.inputs.add(name=name, datatype="INT32", shape=[rows, 16])
        made.raw_input_contents.append(np.tile(ROWS, (rows, 1)).tobytes())
    return bytes(made.SerializeToString())


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found: grpc.StatusCode = caught.value.code()
    return found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.usefixtures("forked_zygotes")
def test_a_server_over_grpc(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    config = ServerConfig(tenants=(TenantConfig(name="acme", token="secret-of-acme", rate=0.01, burst=6),))

    async def main() -> None:
        settings = {"tls_cert": str(chain), "tls_key": str(key), "grpc_port": 0, "config": config}
        async with serve("simple", tmp_path, variant="exact", http=True, **settings) as server:
            credentials = grpc.ssl_channel_credentials(chain.read_bytes())
            async with grpc.aio.secure_channel(server.grpc_target, credentials) as channel:
                infer = channel.unary_unary(SERVICE + "ModelInfer")
                call = infer(request(2), metadata=TENANT)
                answer = ModelInferResponse.FromString(await call)
                sums, differences = (np.frombuffer(raw, np.int32) for raw in answer.raw_output_contents)
                assert (sums == 2 * np.tile(ROWS, (2, 1)).ravel()).all()
                assert not differences.any()
                ends = dict(await call.trailing_metadata())
                assert ends["clover-receipt"].startswith('variant="exact", ')

                # Who it is, and what that tenant may.
                assert await code_of(infer(request(), metadata=(("authorization", "Bearer x"),))) is (
                    grpc.StatusCode.UNAUTHENTICATED
                )
                statistics = channel.unary_unary(SERVICE + "ModelStatistics")
                assert await code_of(statistics(b"", metadata=TENANT)) is grpc.StatusCode.PERMISSION_DENIED
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await infer(request(5), metadata=TENANT)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert int(dict(refused.value.trailing_metadata())["retry-after"]) >= 1
                pids = [worker.pid for worker in server.engine.parts.pool.workers]
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                late = await code_of(infer(request(), metadata=TENANT, timeout=0.05))
                front = server.engine.frontend
                assert front is not None
                assert front.grpc is not None
                async with asyncio.timeout(10):
                    while front.grpc.stats.open_calls:  # the server may see the deadline later than the client
                        await asyncio.sleep(0.01)
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                assert late is grpc.StatusCode.DEADLINE_EXCEEDED

                # The same model as over HTTP: health, counters, statistics.
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                found = await check(health_pb2.HealthCheckRequest(service="simple").SerializeToString())
                assert health_pb2.HealthCheckResponse.FromString(found).status == 1
                kind = message_class("ModelStatisticsResponse")
                counted = kind.FromString(await statistics(b"")).model_stats[0]
                assert counted.inference_count in (2, 3)  # the late one may be computed all the same
                stream = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([request(), request()]))
                streamed = [message_class("ModelStreamInferResponse").FromString(one) async for one in stream]
                assert [one.error_message for one in streamed] == ["", ""]
                text = server.engine.metrics().decode()
                assert 'clover_grpc_answers_total{code="OK"}' in text
                assert server.engine.totals()["tenants"]["acme"]["rate"] == 0.01
                assert server.engine.served["simple"].tenants["acme"].requests[200] == 1

                # A drain answers what was received.
                asked = asyncio.ensure_future(_result(infer(request())))
                while not server.engine.frontend.grpc.stats.open_calls:
                    await asyncio.sleep(0)
                assert await server.drain()
                assert await asked
                assert await code_of(infer(request())) is grpc.StatusCode.UNAVAILABLE

    run(main())


async def _result(call: Any) -> Any:
    return await call
