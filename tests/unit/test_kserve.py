"""The runtime of KServe: its manifest can be read, and Clover takes its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clover import settings
from tests.support.family_folder import write

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="reading the manifest needs PyYAML")
    return list(yaml.safe_load_all((PACKAGING / "kubernetes" / "kserve.yaml").read_text(encoding="utf-8")))


def test_the_runtime_starts_a_server_on_the_ports_that_it_names(tmp_path: Path) -> None:
    runtime, service = manifests()
    assert (runtime["kind"], service["kind"]) == ("ClusterServingRuntime", "InferenceService")
    (container,) = runtime["spec"]["containers"]
    assert container["command"] == ["python", "-m", "clover.serve"]
    assert container["args"][0] == "/mnt/models"
    folder = write(tmp_path / "models")
    config = settings.load([str(folder), *container["args"][1:]], {}).config
    assert (config.listen.host, config.listen.port, config.listen.grpc_port) == ("0.0.0.0", 8080, 9000)
    assert [port["containerPort"] for port in container["ports"]] == [config.listen.port]
    assert runtime["metadata"]["name"] == service["spec"]["predictor"]["model"]["modelFormat"]["name"]
    # A fresh volume, which everybody in the pod may write to, would be refused: it is the folder of the image.
    assert "volumeMounts" not in container
    image = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")
    assert f"--owner clover --mode 0700 {config.cache_dir}" in image


def test_probes_ask_for_paths_that_are_there() -> None:
    from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_family

    (container,) = manifests()[0]["spec"]["containers"]
    d = Driver(FakeView(FakeModel(echo_family())))
    for name in ("readinessProbe", "livenessProbe"):
        probe = container[name]["httpGet"]
        assert probe["port"] == 8080
        assert d.get(probe["path"]).status == 200
