"""OpenAI's client against a server with the family `toy_embedding`: openai_embeddings.py URL [TOKEN]."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai


def check(answer: Any) -> None:
    assert [row.index for row in answer.data] == [0, 1]
    assert [row.embedding for row in answer.data] == [[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    assert answer.usage.prompt_tokens == 2
    assert answer.model == "toy_embedding"


async def both_ways(url: str, token: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token) as client:
        asking = (client.embeddings.create(model="toy_embedding", input=["banana", "io"]) for _ in range(20))
        for answer in await asyncio.gather(*asking):
            check(answer)


def refused(client: openai.OpenAI, **asked: Any) -> int:
    """Return the status with which a request is refused, whose error has the form that the client expects."""
    try:
        client.embeddings.create(**asked)
    except openai.APIStatusError as error:
        body: Any = error.body
        return error.status_code if body["message"] and body["type"] else 0
    return 200


def main(url: str, token: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token) as client:
        check(client.embeddings.create(model="toy_embedding", input=["banana", "io"]))
        check(client.embeddings.create(model="toy_embedding", input=["banana", "io"], encoding_format="float"))
        one = client.embeddings.create(model="toy_embedding", input="aaaeeee", dimensions=2).data[0].embedding
        assert all(abs(got - wanted) < 1e-6 for got, wanted in zip(one, (0.6, 0.8), strict=True))
        raw = client.embeddings.with_raw_response.create(model="toy_embedding", input="a")
        assert raw.headers["clover-receipt"].startswith("variant=")
        assert "toy_embedding" in [model.id for model in client.models.list()]
        assert client.models.retrieve("toy_embedding").owned_by == "clover"
        assert refused(client, model="none", input="a") == 404
        assert refused(client, model="toy_embedding", input=[1]) == 400
    asyncio.run(both_ways(url, token))
    print(f"openai {openai.__version__}: ok")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none")
