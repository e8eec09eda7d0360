"""Kubernetes manifests of the repository: reading them, and checking custom resources against their definitions.

    python -m tests.support.manifests CRD-FOLDER     checks all of packaging/kubernetes; exit code 1 if any is wrong

CRD-FOLDER holds the CustomResourceDefinitions (YAML) of KEDA, KServe, KubeRay and the Prometheus operator, as their
repositories have them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
BUILTIN = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1")
"""Versions of the API that Kubernetes itself has."""


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
    return [item for item in yaml.load_all(path.read_text(encoding="utf-8"), loader) if item]


def definitions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the schemas of a folder of CustomResourceDefinitions, by version of the API and kind."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in documents(path):
            spec = crd["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                found[key] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """Return a schema as JSON Schema, in which fields that it does not name are errors."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: closed(item) for name, item in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
        if key != "default"
    }
    if made.pop("x-kubernetes-int-or-string", False):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if "properties" in made and "additionalProperties" not in made and not free:
        made["additionalProperties"] = False
    return made


def faults(item: Mapping[str, Any], schemas: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a custom resource; nothing if it is as its definition wants it."""
    import jsonschema

    schema = schemas.get((item["apiVersion"], item["kind"]))
    if schema is None:
        yield f"there is no definition of {item['kind']} {item['apiVersion']}"
        return
    common = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    loose = {**schema, "properties": {**schema["properties"], **common}}
    for error in jsonschema.Draft7Validator(loose).iter_errors(dict(item)):
        yield f"{item['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def main() -> int:
    """Check all custom resources, print what was found, and return the exit code."""
    schemas, wrong = definitions(Path(sys.argv[1])), 0
    for path in FILES:
        for item in documents(path):
            if item["apiVersion"] in BUILTIN:
                continue
            found = list(faults(item, schemas))
            wrong += len(found)
            print(f"{path.name}: {item['kind']} {item['apiVersion']}: {'; '.join(found) or 'valid'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
