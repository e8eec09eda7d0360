"""The manifests of packaging/kubernetes: as Kubernetes' schemas want them, and as Clover's settings and paths are."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clover import settings
from clover.cluster import cluster_file
from tests.support import manifests
from tests.support.family_folder import write

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("yaml", reason="reading manifests needs PyYAML")
OBJECTS = [(path.name, item) for path in manifests.FILES for item in manifests.documents(path)]
OLDEST = "1.34"
"""The oldest Kubernetes that manifests are checked against."""


def of(*kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, item) for name, item in OBJECTS if item["kind"] in kinds]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that is made of a manifest, with its name."""
    for name, item in of("Deployment", "StatefulSet", "DaemonSet"):
        yield f"{name}:{item['kind']}", item["spec"]["template"]["spec"]
    for name, item in of("RayCluster"):
        groups = [item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]]
        yield from ((f"{name}:{index}", group["template"]["spec"]) for index, group in enumerate(groups))


PODS = dict(pods())
SERVERS = {name: pod for name, pod in PODS.items() if pod["containers"][0].get("args")}
UNPRIVILEGED = {name: pod for name, pod in PODS.items() if not name.startswith("mig-whole-gpus")}


def test_there_is_a_manifest_for_each_way() -> None:
    files = {"cpu", "stateful", "mig-slices", "mig-whole-gpus", "raycluster", "kserve", "keda", "servicemonitor"}
    assert {path.stem for path in manifests.FILES} == files
    assert len(SERVERS) == 4


@pytest.mark.parametrize("version", [OLDEST, "1.37"])
def test_objects_of_kubernetes_have_its_schemas_fields_and_no_others(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, which brings schemas")
    checked = [item for _, item in OBJECTS if item["apiVersion"] in manifests.BUILTIN]
    for item in checked:
        validate.validate(item, version, strict=True)
    assert len(checked) >= 15
    wrong = copy.deepcopy(next(item for item in checked if item["kind"] == "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(validate.ValidationError, match="livenesProbe"):
        validate.validate(wrong, version, strict=True)


def test_custom_resources_have_the_fields_of_their_definitions() -> None:
    folder = os.environ.get("CLOVER_TEST_CRDS", "")
    if not folder:
        pytest.skip("CLOVER_TEST_CRDS names no folder with the definitions of KEDA, KServe, KubeRay and Prometheus")
    pytest.importorskip("jsonschema")
    schemas = manifests.definitions(Path(folder))
    custom = [item for _, item in OBJECTS if item["apiVersion"] not in manifests.BUILTIN]
    assert [fault for item in custom for fault in manifests.faults(item, schemas)] == []


def test_the_check_of_custom_resources_finds_what_is_wrong() -> None:
    pytest.importorskip("jsonschema")
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer"},
                    "port": {"x-kubernetes-int-or-string": True},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}},
                },
            }
        },
    }
    schemas = {("a/v1", "Toy"): manifests.closed(schema)}

    def found(**spec: Any) -> list[str]:
        return list(manifests.faults({"apiVersion": "a/v1", "kind": "Toy", "metadata": {}, "spec": spec}, schemas))

    assert found(size=1, port="http", free={"any": 1}) == found(size=1, port=80) == []
    assert len(found(size="1")) == len(found()) == len(found(size=1, sise=2)) == 1
    assert list(manifests.faults({"apiVersion": "b/v1", "kind": "Toy"}, schemas)) == [
        "there is no definition of Toy b/v1"
    ]


def server_config(pod: dict[str, Any], folder: Path) -> Any:
    """Return what the server of a pod is configured with, by its own command line and environment."""
    container = pod["containers"][0]
    assert container["command"] == ["python", "-m", "clover.serve"]
    family, *flags = container["args"]
    assert family == "fashion"
    known = {item["name"]: item.get("value", "given") for item in container["env"]}
    flags = [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], flag) for flag in flags]
    token = folder / "token"
    token.write_text("a-token-of-the-tests\n")
    environment = {name: value for name, value in known.items() if name.startswith("CLOVER_")}
    assert environment == {"CLOVER_TOKEN": "file:/run/secrets/clover/token"}
    return settings.load(
        [str(write(folder / "models")), *flags], {**environment, "CLOVER_TOKEN": f"file:{token}"}
    ).config


@pytest.mark.parametrize("name", SERVERS)
def test_a_pod_s_server_takes_its_command_line_and_writes_only_into_its_volumes(name: str, tmp_path: Path) -> None:
    pod = SERVERS[name]
    config, container = server_config(pod, tmp_path), pod["containers"][0]
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert (config.listen.port, config.listen.grpc_port) == (ports["http"], ports["grpc"])
    assert config.listen.host == "0.0.0.0"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = tuple(item["mountPath"] for item in container["volumeMounts"] if not item.get("readOnly"))
    home = next(item["value"] for item in container["env"] if item["name"] == "HOME")
    control = config.listen.control.removeprefix("unix:")
    for path in (config.cache_dir, config.state_dir, home, control, "/tmp"):
        assert any(path == mount or path.startswith(f"{mount}/") for mount in writable), path
    mounted = {item["mountPath"] for item in container["volumeMounts"] if item.get("readOnly")}
    assert "/run/secrets/clover" in mounted
    volumes = {item["name"] for item in pod.get("volumes", [])} | {"data"}
    assert {item["name"] for item in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("name", SERVERS)
def test_a_pod_has_time_to_drain(name: str, tmp_path: Path) -> None:
    config = server_config(SERVERS[name], tmp_path)
    needed = config.limits.drain_delay_s + config.limits.drain_s
    assert needed + 10.0 <= SERVERS[name]["terminationGracePeriodSeconds"]
    ready = SERVERS[name]["containers"][0]["readinessProbe"]
    # Long enough for the Service to learn that the pod is not ready any more.
    assert ready["periodSeconds"] * ready["failureThreshold"] <= config.limits.drain_delay_s


@pytest.mark.parametrize("name", SERVERS)
def test_probes_run_the_probe_of_the_image_and_ask_for_paths_that_are_there(name: str) -> None:
    from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_family

    image = (ROOT / "packaging" / "Dockerfile").read_text(encoding="utf-8")
    container, d = SERVERS[name]["containers"][0], Driver(FakeView(FakeModel(echo_family())))
    for probe, what in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
        command = container[probe]["exec"]["command"]
        assert command == ["python", "-IS", "/opt/probe.py", what]
        assert f"COPY packaging/probe.py {command[2]}" in image
        assert d.get(f"/v2/health/{what}").status == 200
    # A start that measures its family is alive for as long as that takes.
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] >= 30


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_pods_have_no_rights_that_they_do_not_need(name: str) -> None:
    pod = UNPRIVILEGED[name]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in (*pod["initContainers"], *pod["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    assert re.search(r"--uid 10001 clover", (ROOT / "packaging" / "Dockerfile").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_folders_that_hold_code_are_made_for_the_server_alone(name: str) -> None:
    pod = UNPRIVILEGED[name]
    (maker,) = pod["initContainers"]
    program, *flags = [word for word in maker["command"] if not word.startswith("/")]
    assert (program, flags) == ("install", ["--directory", "--mode=0700"])
    (volume,) = maker["volumeMounts"]
    made = {word.removeprefix(f"{volume['mountPath']}/") for word in maker["command"] if word.startswith("/")}
    mounts = [item for item in pod["containers"][0]["volumeMounts"] if item["name"] == volume["name"]]
    assert {item["subPath"] for item in mounts} == made


def test_a_slice_is_asked_for_once_and_cut_by_nobody_else() -> None:
    pod = PODS["mig-slices.yaml:Deployment"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert [name for name in resources["limits"] if name.startswith("nvidia.com/")] == ["nvidia.com/mig-1g.10gb"]
    assert "--device=nvidia" in pod["containers"][0]["args"]


def test_services_budgets_policies_and_monitors_select_pods_that_there_are() -> None:
    labels = [
        item["spec"]["template"]["metadata"]["labels"] for _, item in of("Deployment", "StatefulSet", "DaemonSet")
    ]
    groups = {group["groupName"] for _, item in of("RayCluster") for group in item["spec"]["workerGroupSpecs"]}
    for name, item in of("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"):
        spec = item["spec"]
        wanted = spec.get("podSelector", spec.get("selector", {}))
        wanted = wanted.get("matchLabels", wanted)
        if "ray.io/cluster" in wanted:
            assert wanted["ray.io/cluster"] == "clover"
            assert wanted.get("ray.io/group") in {None, *groups}
        else:
            assert any(wanted.items() <= own.items() for own in labels), (name, item["kind"])
    ports = {port["name"] for _, item in of("Service") for port in item["spec"]["ports"]}
    ((_, monitor),) = of("ServiceMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_keda_asks_for_metrics_that_clover_has() -> None:
    from clover.telemetry.metrics.models import MODELS

    ((_, scaled),) = of("ScaledObject")
    spec = scaled["spec"]
    target = [item for _, item in of(spec["scaleTargetRef"]["kind"]) if item["metadata"]["name"] == "clover"]
    assert len(target) == 1
    trigger, cores = spec["triggers"]
    assert cores["type"] == "cpu"
    assert all(container["resources"]["requests"]["cpu"] for container in PODS["cpu.yaml:Deployment"]["containers"])
    named = set(re.findall(r"\bclover_\w+", trigger["metadata"]["query"]))
    known = {line.name: line for line in MODELS}
    assert named == {"clover_arrival_rows_per_second", "clover_capacity_rows_per_second"}
    assert named <= set(known)
    assert known["clover_capacity_rows_per_second"].labels == ("model", "of")
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA's schema wants texts


def test_the_cluster_of_kuberay_can_be_read_and_has_a_worker_for_each_node() -> None:
    ((_, config),) = of("ConfigMap")
    found = cluster_file.parse(config["data"]["cluster.toml"])
    ((_, ray),) = of("RayCluster")
    groups = {group["groupName"]: group["rayStartParams"]["resources"] for group in ray["spec"]["workerGroupSpecs"]}
    assert {node.resource for node in found.node} == set(groups)
    assert all(f'\\"{name}\\": 1' in resources for name, resources in groups.items())
    services = {item["metadata"]["name"]: item["spec"] for _, item in of("Service")}
    for node in found.node:
        assert services[node.address]["selector"]["ray.io/group"] == node.resource
        assert services[node.address]["clusterIP"] == "None"


KUSTOMIZATIONS = [manifests.FOLDER, manifests.FOLDER.parent / "kubernetes-overlay"]


def kustomization(folder: Path) -> dict[str, Any]:
    (found,) = manifests.documents(folder / "kustomization.yaml")
    assert (found["apiVersion"], found["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    return found


def resources(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization's resources, those of its bases included."""
    paths = [folder / name for name in kustomization(folder)["resources"]]
    return [item for path in paths for item in (resources(path) if path.is_dir() else manifests.documents(path))]


def test_the_overlay_changes_objects_that_are_there() -> None:
    import yaml

    overlay, objects = kustomization(KUSTOMIZATIONS[1]), resources(KUSTOMIZATIONS[1])
    assert {item["apiVersion"] for item in objects} <= {*manifests.BUILTIN}, "no operator is needed"
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    pod, name = deployment["spec"]["template"]["spec"], deployment["metadata"]["name"]
    assert {item["name"] for item in overlay["images"]} == {pod["containers"][0]["image"].split(":")[0]}
    assert {item["name"] for item in overlay["replicas"]} == {name}
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert {item["name"] for item in overlay["secretGenerator"]} == secrets
    for patch in overlay["patches"]:
        assert patch["target"] == {"kind": "Deployment", "name": name}
        for change in yaml.safe_load(patch["patch"]):
            at, *path = (deployment, *change["path"].split("/")[1:])
            for key in path[:-1] if path[-1] == "-" else path:
                at = at[int(key)] if isinstance(at, list) else at[key]
            assert change["op"] == ("add" if path[-1] == "-" else "replace")


@pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed (Debian's package kustomize)")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_kustomize_makes_objects_that_kubernetes_takes(folder: Path, tmp_path: Path) -> None:
    import yaml

    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, which brings schemas")
    for source in KUSTOMIZATIONS:
        shutil.copytree(source, tmp_path / source.name)
    (tmp_path / "kubernetes-overlay" / "token").write_text("a-token-of-the-tests\n")
    built = subprocess.run(["kustomize", "build", tmp_path / folder.name], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    objects = list(yaml.safe_load_all(built.stdout))
    for item in objects:
        validate.validate(item, OLDEST, strict=True)
    kinds = {item["kind"]: item for item in objects}
    assert {"Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)
    if folder.name == "kubernetes-overlay":
        assert {item["metadata"]["namespace"] for item in objects} == {"inference"}
        pod = kinds["Deployment"]["spec"]["template"]["spec"]
        images = {container["image"] for container in (*pod["initContainers"], *pod["containers"])}
        assert images == {"registry.example.org/clover:0.1.0"}
        secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert secrets == [kinds["Secret"]["metadata"]["name"]] != ["clover-token"], "a new token restarts the pods"
        family, *flags = pod["containers"][0]["args"]
        assert (family, flags[-1]) == ("language", "--carbon=auto:DE")
