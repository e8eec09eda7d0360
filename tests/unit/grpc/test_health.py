"""The health service: what is ready, looked up when it is asked for, and watched until the server stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from grpc import StatusCode
from grpc_health.v1 import health_pb2

from tests.support.grpc_fakes import FakeContext, GrpcDriver
from tests.support.http_fakes import FakeModel, FakeView, family, tensor

CHECK, WATCH = "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"
Status = health_pb2.HealthCheckResponse


def served() -> tuple[FakeModel, FakeView, GrpcDriver]:
    model = FakeModel(family("m", [tensor("IN", "FP32", 1)], [tensor("OUT", "FP32", 1)]))
    view = FakeView(model)
    return model, view, GrpcDriver(view)


def asked(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def statuses(answers: list[bytes]) -> list[str]:
    return [Status.ServingStatus.Name(Status.FromString(one).status) for one in answers]


def test_check() -> None:
    model, view, driver = served()
    for service in ("", "inference.GRPCInferenceService", "m"):
        assert statuses([driver.ask(CHECK, asked(service)).answer]) == ["SERVING"]
    model.ready = view.is_ready = False
    for service in ("", "inference.GRPCInferenceService", "m"):
        assert statuses([driver.ask(CHECK, asked(service)).answer]) == ["NOT_SERVING"]
    assert driver.ask(CHECK, asked("nope")).status is StatusCode.NOT_FOUND
    assert driver.ask(CHECK, b"\xff").status is StatusCode.INVALID_ARGUMENT


def test_watch_says_each_change_once_and_ends_with_the_server() -> None:
    model, view, driver = served()
    context = FakeContext(asked("m").SerializeToString())

    async def settled(count: int) -> None:
        while len(context.written) < count:
            await asyncio.sleep(0)

    async def main() -> None:
        watch = asyncio.create_task(driver.run(WATCH, context))
        await settled(1)
        model.ready = False
        await settled(2)
        del view.by_name["m"]
        await settled(3)
        view.by_name["m"], model.ready = model, True
        await settled(4)
        driver.health.end_streams()
        await watch

    asyncio.run(main())
    assert statuses(context.written) == ["SERVING", "NOT_SERVING", "SERVICE_UNKNOWN", "SERVING", "NOT_SERVING"]
    assert context.status is StatusCode.UNAVAILABLE


def test_so_many_may_watch() -> None:
    _, _, driver = served()
    driver.health._watches = 256
    context = driver.ask(WATCH, asked(""))
    assert context.status is StatusCode.RESOURCE_EXHAUSTED
    assert "256 clients" in context.details
