"""LitServe: the model in a process of its own, its own batching."""

from __future__ import annotations

from typing import Any

import litserve

from bench.wire.peers.common import answer, given, model_of


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Batches of requests, as LitServe gives them."""

    def setup(self, device: str) -> None:
        self.work = given()[0]
        self.run = model_of(self.work)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would name a parameter
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> list[Any]:
        answers = self.run(self.work.gather(inputs))
        return [(document["id"], row) for document, row in zip(inputs, answers, strict=True)]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return answer(given()[0], *output)


if __name__ == "__main__":
    work, port = given()
    path = f"/v2/models/{work.family.name}/infer"
    api = Api(max_batch_size=work.family.max_batch, batch_timeout=0.0, api_path=path)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
