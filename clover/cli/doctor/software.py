"""Findings about software: Clover, Python, torch, and the extras with what each would give."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from clover._version import __version__
from clover.cli.doctor.findings import Finding
from clover.devices.driver import torch_build

DISTRIBUTION = "clover-inference"
_GIVES = {
    "onnx": "the backend onnxruntime, often the fastest on cores",
    "openvino": "the backends openvino*, often the cheapest for heavy networks on cores",
    "tensorrt": "the backend tensorrt on NVIDIA GPUs",
    "otel": "spans and device energy for an OpenTelemetry collector (--otel)",
    "dashboard": "charts of the page /dashboard and of HTML reports",
    "models": "the families that come with Clover, `fashion` aside",
    "analysis": "a tighter bound of `clover plan`, PNG charts, reports as Parquet",
}
_OURS = {"test", "dev"}
"""Extras for those who work on Clover."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*?extra\s*==\s*['\"]([^'\"]+)['\"]")


def examine() -> Iterator[Finding]:
    """Yield what is installed."""
    torch = torch_version()
    python = f"Python {platform.python_version()}"
    if torch is None:
        yield Finding(
            topic="software",
            state="fault",
            text=f"Clover {__version__}, {python}, and no torch: workers cannot start",
            remedy="pip install torch",
        )
    else:
        yield Finding(topic="software", state="works", text=f"Clover {__version__}, {python}, torch {torch}")
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        required = []
    yield from extras(required)


def torch_version() -> str | None:
    """Return the version of torch, which is not imported for that; None if it is not installed."""
    return _version("torch")


def torch_cuda() -> str | None:
    """Return the version of CUDA that torch was built for, as "12.8"; None without CUDA, and without torch."""
    found = torch_build()
    return found.cuda or None if found is not None else None


def extras(required: Sequence[str], version: Callable[[str], str | None] | None = None) -> Iterator[Finding]:
    """Yield each extra of `required` (lines of the package's metadata), with what of it is installed."""
    look = version or _version
    packages: dict[str, list[str]] = {}
    for line in required:
        if (found := _REQUIREMENT.match(line)) is not None and found[2] not in _OURS:
            packages.setdefault(found[2], []).append(found[1])
    for extra, names in packages.items():
        gives = _GIVES.get(extra, "")
        missing = [name for name in names if look(name) is None]
        if missing:
            would = f"; with it: {gives}" if gives else ""
            yield Finding(
                topic="extras",
                state="absent",
                text=f"{extra}: {', '.join(missing)} missing{would}",
                remedy=f"pip install '{DISTRIBUTION}[{extra}]'",
            )
        else:
            yield Finding(topic="extras", state="works", text=f"{extra}: {gives or ', '.join(names)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
