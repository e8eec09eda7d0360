"""A thin client: arrays, files or text in; values, labels and a receipt out.

    with clover.client.Client("http://127.0.0.1:8080") as client, clover.client.tally() as used:
        answer = client.infer("fashion", image)
    print(answer.label, answer.receipt, used)

It needs the extra `client` (httpx), and imports nothing of the server, no compiled module and no torch.
"""

from __future__ import annotations

try:
    import httpx as _httpx  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "clover.client needs httpx: pip install 'clover-inference[client]'", name="httpx"
    ) from error

from clover.client.calls import ModelInfo, Result
from clover.client.clients import AsyncClient, Client, Options
from clover.client.messages import Retries, ServerUnreachable
from clover.client.receipts import CallReceipt
from clover.client.tallies import ModelUse, Tally, tally
from clover.client.tensors import TensorInfo

__all__ = [
    "AsyncClient",
    "CallReceipt",
    "Client",
    "ModelInfo",
    "ModelUse",
    "Options",
    "Result",
    "Retries",
    "ServerUnreachable",
    "Tally",
    "TensorInfo",
    "tally",
]
