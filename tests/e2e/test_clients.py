"""The client library, OpenAI's client, the ASGI application and the cache of answers on one whole server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httpx", reason="the client needs the extra `client`")

import httpx

import clover
from clover.client import AsyncClient, Client, tally
from tests.support.servers import family, run, serve

ROWS = np.arange(16, dtype=np.int32)[np.newaxis]


async def ask(client: AsyncClient) -> None:
    """Ask both families: what is asked again comes from the cache, which the receipt and the tally say."""
    with tally() as used:
        for cached in (False, True):
            answer = await client.infer("simple", {"INPUT0": ROWS, "INPUT1": ROWS + 1})
            assert answer["OUTPUT0"].tolist() == (2 * ROWS + 1).tolist()
            assert answer.receipt is not None
            assert answer.receipt.cached is cached
            assert answer.receipt.energy_j > 0.0
        fresh = await client.infer("simple", {"INPUT0": ROWS, "INPUT1": ROWS + 1}, fresh=True)
        assert fresh.receipt is not None
        assert not fresh.receipt.cached
        assert (await client.embed("toy_embedding", ["banana", "io"])).tolist() == [[3, 0, 0, 0], [0, 0, 1, 1]]
        with pytest.raises(clover.BadRequest):
            await client.infer("simple", {"INPUT0": ROWS})
    assert (used.calls, used.cached, used.by_model["simple"].calls) == (4, 1, 3)
    assert used.method == "modelled"
    assert used.joules > 0.0
    assert used.grams > 0.0


def with_openai(url: str) -> None:
    """Embed with OpenAI's client, unmodified."""
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="toy_embedding", input=["banana", "io"], dimensions=2)
        assert answer.data[0].embedding == [1.0, 0.0]
        assert [model.id for model in client.models.list()] == ["toy_embedding"]
        with pytest.raises(openai.NotFoundError, match="no model of that name"):
            client.embeddings.create(model="simple", input="a")


@pytest.mark.usefixtures("forked_zygotes")
def test_clients_of_a_whole_server(tmp_path: Path) -> None:
    async def main() -> None:
        server = clover.Server(
            family("simple"),
            family("toy_embedding"),
            cache_dir=str(tmp_path),
            variant="exact",
            port=0,
            carbon="static:300",
            energy_meter="modelled",
            cache_answers=1.0,
        )
        app = server.asgi()
        async with app.lifespan():
            async with AsyncClient(server.url) as client:
                await ask(client)
            assert await asyncio.to_thread(by_threads, server.url) == 8
            await asyncio.to_thread(with_openai, server.url)
            transport = httpx.ASGITransport(app)
            async with AsyncClient("http://mounted.example", transport=transport) as client:
                assert await client.models() == ["simple", "toy_embedding"]
                answer = await client.infer("simple", {"INPUT0": ROWS, "INPUT1": ROWS + 1})
                assert answer.receipt is not None
                assert answer.receipt.cached  # the same cache as the port's
            state = (await asyncio.to_thread(httpx.get, f"{server.url}/metrics")).text
            assert 'clover_cache_rows_total{model="simple",outcome="hit"}' in state

    run(main())


def by_threads(url: str) -> int:
    """Ask by two threads that share a client; return how many calls were counted."""
    from concurrent.futures import ThreadPoolExecutor

    with Client(url) as client, tally() as used, ThreadPoolExecutor(2) as pool:
        rows = [{"INPUT0": ROWS + at, "INPUT1": ROWS} for at in range(8)]
        for at, answer in enumerate(pool.map(lambda one: client.infer("simple", one), rows)):
            assert answer["OUTPUT0"].tolist() == (2 * ROWS + at).tolist()
    return used.calls


@pytest.mark.usefixtures("forked_zygotes")
def test_an_application_without_a_port(tmp_path: Path) -> None:
    async def main() -> None:
        server = serve("simple", tmp_path, variant="exact")
        app = server.asgi()
        async with app.lifespan(), AsyncClient("http://x", transport=httpx.ASGITransport(app)) as client:
            answer = await client.infer("simple", {"INPUT0": ROWS, "INPUT1": ROWS})
            assert answer["OUTPUT1"].tolist() == (0 * ROWS).tolist()
        assert server.running is None

    run(main())
