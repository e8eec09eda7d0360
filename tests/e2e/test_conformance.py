"""The conformance suite (`tests/conformance`) against a whole server with real workers: HTTP, infer requests, gRPC.

After each case a good request on a new connection succeeds; no answer takes 5 s; descriptors,
tasks and slots come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

import clover
from clover.config import FamilyConfig, ServerConfig
from tests.conformance import http_cases, oip_cases
from tests.conformance.answers import GOOD, fits
from tests.conformance.oip_cases import FAMILIES
from tests.support.http_fakes import request
from tests.support.http_streams import parse
from tests.support.servers import descriptors, family, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
pytest.importorskip("grpc", reason="the extra grpc is not installed")

AT_ONCE = 8
LONGEST_S = 5.0
Play = tuple[str, bytes, tuple[tuple[int, ...], ...], str]


async def said(port: int, data: bytes) -> list[int]:
    """Send bytes, half-close, and return the statuses of all answers but interim ones."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        answers = await reader.read()
    except ConnectionResetError:  # it refused the rest unread, and waited as long as it does for us to stop
        answers = b""
    finally:
        writer.close()
    return [answer.status for answer in parse(answers) if answer.status != 100]


async def play(port: int, cases: Iterable[Play], wrong: list[str]) -> None:
    """Play cases, some at once; note what is wrong."""
    waiting = iter(cases)

    async def some() -> None:
        for name, sent, right, source in waiting:
            for what, data, wanted in ((name, sent, right), (f"a good request after {name}", GOOD, ((200,),))):
                begun = time.monotonic()
                found = await said(port, data)
                if not fits(found, wanted):
                    wrong.append(f"{what}: {found} instead of {wanted} ({source})")
                if time.monotonic() - begun > LONGEST_S:
                    wrong.append(f"{what}: answered after {time.monotonic() - begun:.1f} s")

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def play_grpc(target: str, wrong: list[str]) -> None:
    """Play the cases of gRPC."""
    import grpc
    import grpc.aio

    from tests.conformance import grpc_cases

    good = grpc_cases.asked().SerializeToString()
    waiting = iter(grpc_cases.cases())

    async def code(channel: grpc.aio.Channel, call: str, message: bytes) -> str:
        path = f"/{call}" if "/" in call else f"/inference.GRPCInferenceService/{call}"
        try:
            await channel.unary_unary(path)(message, timeout=LONGEST_S)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def some(channel: grpc.aio.Channel) -> None:
        for case in waiting:
            for what, call, message, codes in (case[:4], (f"good after {case.name}", "ModelInfer", good, ("OK",))):
                found = await code(channel, call, message)
                if found not in codes:
                    wrong.append(f"{what}: {found} instead of {codes} ({case.source})")

    async with grpc.aio.insecure_channel(target) as channel:
        await asyncio.gather(*(some(channel) for _ in range(AT_ONCE)))


@pytest.mark.usefixtures("forked_zygotes")
def test_every_exchange_is_answered_as_its_source_says(tmp_path: Path) -> None:
    wrong: list[str] = []
    variants = {name: "exact" if name == "simple" else "echo" for name in FAMILIES}
    config = ServerConfig(
        families=tuple(FamilyConfig(family=family(name), variant=variants[name]) for name in FAMILIES)
    )

    async def main() -> None:
        settings = {"cache_dir": str(tmp_path), "port": 0, "grpc_port": 0, "carbon": "static:300"}
        async with clover.Server(config=config, energy_meter="modelled", **settings) as server:
            port = int(server.url.rpartition(":")[2])
            await play(port, [(case.name, *case[1:]) for case in http_cases.cases()[:8]], wrong)  # what is lazy is made
            slots = {name: server.engine.served[name].router.observe()["free_slots"] for name in FAMILIES}
            before, tasks = descriptors(), len(asyncio.all_tasks())
            await play(port, http_cases.cases(), wrong)
            await play(
                port,
                (
                    (
                        one.name,
                        request("POST", f"/v2/models/{one.path}", one.body, one.fields),
                        (one.statuses,),
                        one.source,
                    )
                    for one in oip_cases.cases()
                ),
                wrong,
            )
            await until(lambda: descriptors() <= before + 2, 10.0)
            await play_grpc(server.grpc_target, wrong)
            await until(lambda: descriptors() <= before + 8, 10.0)
            await until(lambda: len(asyncio.all_tasks()) <= tasks + 2, 10.0)
            assert slots == {name: server.engine.served[name].router.observe()["free_slots"] for name in FAMILIES}

    run(main())
    assert wrong == []
