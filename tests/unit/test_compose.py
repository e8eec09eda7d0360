"""packaging/compose.yaml: what it names is there, and its three services agree about names, ports and the token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clover import settings
from clover.telemetry import dashboards
from tests.support.family_folder import write

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
yaml = pytest.importorskip("yaml", reason="reading the compose file needs PyYAML")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


COMPOSE = read(PACKAGING / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounted(service: str) -> dict[str, Path]:
    """The files that a service has by `configs`, by their paths in the container."""
    files = {name: PACKAGING / config["file"] for name, config in COMPOSE["configs"].items()}
    return {item["target"]: files[item["source"]] for item in SERVICES[service].get("configs", [])}


def test_what_services_use_is_declared_and_what_is_declared_is_used() -> None:
    used = {"configs": set(), "secrets": set(), "volumes": set()}
    for service in SERVICES.values():
        used["configs"] |= {item["source"] for item in service.get("configs", [])}
        used["secrets"] |= {*service.get("secrets", [])}
        used["volumes"] |= {volume.split(":")[0] for volume in service["volumes"]}
    assert {kind: {*COMPOSE[kind]} for kind in used} == used
    files = [config["file"] for config in COMPOSE["configs"].values()]
    assert [file for file in files if not (PACKAGING / file).is_file()] == []
    build = SERVICES["clover"]["build"]
    assert (PACKAGING / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_a_named_version_and_a_check_of_its_health(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    if name != "clover":  # whose image has a user and a check
        assert int(service["user"].split(":")[0]) > 0
        assert service["healthcheck"]["test"][0] == "CMD"


def test_the_secret_is_kept_out_of_the_repository_and_of_the_image() -> None:
    folder = f"packaging/{Path(COMPOSE['secrets']['token']['file']).parent}"
    assert f"{folder}/" in (PACKAGING.parent / ".gitignore").read_text().splitlines()
    assert folder in (PACKAGING / "Dockerfile.dockerignore").read_text().splitlines()


def test_prometheus_asks_clover_by_a_name_and_with_a_token_that_it_takes(tmp_path: Path) -> None:
    clover, files = SERVICES["clover"], mounted("prometheus")
    token = tmp_path / "token"
    token.write_text("a-token-of-the-tests\n")
    assert clover["environment"]["CLOVER_TOKEN"] == "file:/run/secrets/token"
    environment = {**clover["environment"], "CLOVER_TOKEN": f"file:{token}", "CLOVER_HOST": "0.0.0.0"}
    config = settings.load([str(write(tmp_path / "models"))], environment).config
    prometheus = read(files["/etc/prometheus/prometheus.yml"])
    (job,) = prometheus["scrape_configs"]
    ((target,),) = (group["targets"] for group in job["static_configs"])
    host, port = target.split(":")
    assert host in {*config.listen.allowed_hosts} & {*SERVICES}
    assert int(port) == config.listen.port
    assert job["job_name"] == "clover"
    assert job["authorization"]["credentials_file"] == "/run/secrets/token"
    assert all("token" in SERVICES[name]["secrets"] for name in ("clover", "prometheus"))
    (rules,) = prometheus["rule_files"]
    assert files[f"/etc/prometheus/{rules}"].read_text() == dashboards.files()["clover-rules.yml"]
    # Longer than the server drains.
    assert int(clover["stop_grace_period"].removesuffix("s")) >= config.limits.drain_s + 10


def test_grafana_has_the_dashboard_and_the_prometheus_that_it_asks() -> None:
    files = mounted("grafana")
    (source,) = read(files["/etc/grafana/provisioning/datasources/clover.yaml"])["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in SERVICES
    assert SERVICES["prometheus"]["ports"][0].endswith(source["url"].rpartition(":")[2])
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = read(files["/etc/grafana/provisioning/dashboards/clover.yaml"])["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(home).parent) == provider["options"]["path"]
    assert json.loads(files[home].read_text()) == json.loads(dashboards.files()["clover-grafana.json"])
