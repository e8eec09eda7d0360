"""Weights that are published and not shipped: where they lie once they were fetched, and what a family is without them.

They lie where `torch.hub` keeps them, so what torchvision fetched is found.  Nothing is fetched here unless `fetch` is
called: a server needs no network.  A variant whose weights are not there is *untrained*: it is built with random
weights, serves and costs what the trained one does, and its answers mean nothing, which its accuracy of 0, metadata,
banner and log say.

A file of which no digest is known when a family is written is pinned when it is fetched: a file beside it,
"NAME.pinned", holds its digest and its address, in which "{revision}" was replaced by a commit.  Without that it does
not count as there.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from msgspec.structs import replace

from clover.cache import fetched_files
from clover.digests import sha256_of
from clover.errors import ConfigError
from clover.types import FamilySpec, PublishedAccuracy, PublishedFile, PublishedWeights, VariantSpec

_TIMEOUT_S = 60.0
_ON_A_HUB = re.compile(r"https://[^/]+/(?P<owner>[^/]+)/(?P<repository>[^/]+)/resolve/[^/]+/(?P<file>.+)")
"""Models on a hub have files of the same few names, which their addresses tell apart."""

File = TypeVar("File", bound=PublishedFile)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def place_of(published: PublishedFile) -> Path:
    """Return where a published file lies, or would."""
    match = _ON_A_HUB.fullmatch(published.url)
    name = "--".join(match.groups()).replace("/", "--") if match else PurePosixPath(published.url).name
    return fetched_files() / name


def file_of(published: PublishedFile) -> Path:
    """Return the published file.  Raises ConfigError if its digest is not the one that is pinned."""
    path, known = place_of(published), pinned(published)
    if known is None:
        raise ConfigError(f"{path.name} is not pinned to a digest: fetch it again")
    if not (digest := sha256_of(path)).startswith(known.sha256):
        raise ConfigError(f"{path.name} has the SHA-256 digest {digest}, and {known.sha256} is pinned: delete it")
    for file in known.beside.values() if isinstance(known, PublishedWeights) else ():
        file_of(file)
    return path


def pinned(published: File) -> File | None:
    """Return a published file with its digest and full address, as they were pinned; None if they are not known."""
    if published.sha256:
        return published
    with contextlib.suppress(OSError, ValueError):
        digest, url = _pin_of(place_of(published)).read_text(encoding="utf-8").split()
        if len(digest) == 64:
            return replace(published, url=url, sha256=digest)
    return None


def fetch(published: PublishedFile, revision: str = "") -> Path:
    """Fetch a published file and those it needs beside it, unless they are there, and return it.

    `revision` is the commit to take if the family pins none.  Raises ConfigError for another digest or if a commit is
    needed and `revision` is none, OSError without a network."""
    path = place_of(published)
    if not path.is_file() or pinned(published) is None:
        url = _with_revision(published.url, revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, draft.open("wb") as file:
                while part := answer.read(1 << 20):
                    file.write(part)
            digest = sha256_of(draft)
            if not digest.startswith(published.sha256):
                raise ConfigError(f"{url} has the digest {digest}, and {published.sha256} is pinned")
            if not published.sha256:
                pin = Path(folder) / "pin"
                pin.write_text(f"{digest}  {url}\n", encoding="utf-8")
                os.replace(pin, _pin_of(path))
            os.replace(draft, path)
    for one in published.beside.values() if isinstance(published, PublishedWeights) else ():
        fetch(one)
    return file_of(published)


def fetch_of(spec: FamilySpec, arguments: Sequence[str]) -> int:
    """Fetch the published weights of the variants that a command line names ("VARIANT" or "VARIANT@COMMIT"), all by
    default.  Return 0 if they are there now, 3 if one is not, which is said."""
    wanted = dict(argument.partition("@")[::2] for argument in arguments)
    failed = False
    for name in wanted or [variant.name for variant in spec.variants]:
        try:
            declared = spec.variant(name).published
            print(f"{name}: {'is not published' if declared is None else fetch(declared, wanted.get(name, ''))}")
        except KeyError:
            failed = True
            names = ", ".join(variant.name for variant in spec.variants)
            print(f"no variant {name!r} in {spec.name}: {names}", file=sys.stderr)
        except (ConfigError, OSError) as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    return 3 if failed else 0


def with_untrained(spec: FamilySpec) -> FamilySpec:
    """Return a family with the variants marked whose published weights are not here."""
    return replace(spec, variants=tuple(_mark_untrained(variant) for variant in spec.variants))


def caution(spec: FamilySpec) -> str:
    """Return a warning about the untrained variants of a family, for those who serve or measure it; "" without any."""
    random = [variant for variant in spec.variants if variant.untrained]
    if not random:
        return ""
    text = f"{', '.join(one.name for one in random)} of {spec.name}: UNTRAINED, built with random weights. "
    text += "Their answers mean nothing" + ("" if spec.evaluation else " and their accuracy counts as 0")
    page = Path(spec.folder) / "README.md"
    if any(one.published is not None for one in random):
        return text + (f"; {page} says how to fetch the published weights" if page.is_file() else "")
    return f"{text}; put trained weights into their files, then remove `untrained` from family.toml"


def _mark_untrained(variant: VariantSpec) -> VariantSpec:
    if variant.published is None or variant.untrained:
        return variant
    if (present := _there(variant.published)) is not None:
        names = {key: place_of(file).name for key, file in present.beside.items()}
        return replace(variant, published=present, parameters={**variant.parameters, **names})
    trained = f" (trained: {variant.accuracy.value:g} %)" if variant.accuracy is not None else ""
    metric = variant.accuracy.metric if variant.accuracy is not None else "top1"
    accuracy = PublishedAccuracy(value=0.0, metric=metric, source=f"UNTRAINED: random weights{trained}")
    return replace(variant, untrained=True, accuracy=accuracy)


def _there(published: PublishedWeights) -> PublishedWeights | None:
    """Return published weights as they are pinned; None if they, or a file that they need, are not here."""
    pin = pinned(published)
    if pin is None or not place_of(pin).is_file():
        return None
    beside = {}
    for key, file in pin.beside.items():
        digest = pinned(file)
        if digest is None or not place_of(digest).is_file():
            return None
        beside[key] = digest
    return replace(pin, beside=beside)


def _pin_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.pinned")


def _with_revision(url: str, revision: str) -> str:
    """Return an address with the commit filled in.  Raises ConfigError if there is none."""
    if "{revision}" not in url:
        return url
    page = url.partition("/resolve/")[0]
    if not _COMMIT.fullmatch(revision):
        raise ConfigError(
            f"no revision is pinned: choose a commit of {page}/commits/main and give it as VARIANT@COMMIT "
            f"(40 hexadecimal digits, not {revision or 'main'!r}: a branch may change under you)"
        )
    return url.replace("{revision}", revision)
