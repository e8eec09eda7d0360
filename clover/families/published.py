"""Weights that are published and not shipped: where they lie once they were fetched, and what a family is without them.

They lie where `torch.hub` keeps them, so what torchvision fetched is found.  Nothing is fetched here: a server needs no
network.  A variant whose weights are not there is *untrained*: it is built with random weights, serves and costs what
the trained one does, and its answers mean nothing, which its accuracy of 0, metadata, banner and log say.
"""

from __future__ import annotations

import os
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from clover.digests import sha256_of
from clover.errors import ConfigError
from clover.types import FamilySpec, PublishedAccuracy, PublishedWeights, VariantSpec

_TIMEOUT_S = 60.0


def place_of(published: PublishedWeights) -> Path:
    """Return where the file of published weights lies, or would."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / PurePosixPath(published.url).name


def file_of(published: PublishedWeights) -> Path:
    """Return the file of published weights.  Raises ConfigError if its digest is not the one that is pinned."""
    path = place_of(published)
    if not (digest := sha256_of(path)).startswith(published.sha256):
        raise ConfigError(f"{path.name} has the SHA-256 digest {digest}, and {published.sha256} is pinned: delete it")
    return path


def fetch(published: PublishedWeights) -> Path:
    """Fetch published weights, unless they are there, and return their file.  Raises ConfigError for another digest,
    OSError without a network."""
    path = place_of(published)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            with urllib.request.urlopen(published.url, timeout=_TIMEOUT_S) as answer, draft.open("wb") as file:
                while part := answer.read(1 << 20):
                    file.write(part)
            if not (digest := sha256_of(draft)).startswith(published.sha256):
                raise ConfigError(f"{published.url} has the digest {digest}, and {published.sha256} is pinned")
            os.replace(draft, path)
    return file_of(published)


def with_untrained(spec: FamilySpec) -> FamilySpec:
    """Return a family with the variants marked whose published weights are not here."""
    return replace(spec, variants=tuple(_marked(variant) for variant in spec.variants))


def _marked(variant: VariantSpec) -> VariantSpec:
    if variant.published is None or variant.untrained or place_of(variant.published).is_file():
        return variant
    trained = f" (trained: {variant.accuracy.value:g} %)" if variant.accuracy is not None else ""
    metric = variant.accuracy.metric if variant.accuracy is not None else "top1"
    accuracy = PublishedAccuracy(value=0.0, metric=metric, source=f"UNTRAINED: random weights{trained}")
    return replace(variant, untrained=True, accuracy=accuracy)
