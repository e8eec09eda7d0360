"""What a row costs by backend, for every family that comes with Clover and three networks by their shape.

    python -m bench.networks [FAMILY ...] [--threads N] [--json FILE] [--markdown FILE]

Each family is measured as a first start measures it (`clover profile --quick`), in a cache folder of its own, so that
everything is compiled and tried anew: 10 to 25 minutes in all on two cores.  A FAMILY is a name, a folder, or one of
`resnet50`, `mobilenet_v3` and `bert_base`, which are built here with random weights: how right they are says nothing,
what they cost does.  A family without its weights on this machine is listed with the reason and not measured.

`before` is the cheapest backend that is right among eager, AOTInductor and ONNX Runtime in float32 and int8; `now` is
the one chosen among all.  CPU milliseconds are measured, alone (batches of one) and in the largest batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.common import ROOT, provenance, show, write_json
from clover import families
from clover.errors import CloverError
from clover.families import published
from clover.profiling.choose import choose_backend, times
from clover.types import FamilyProfile

FAMILIES = (
    *("fashion", "language", "embedding", "pitch", "ocr", "efficientnet_lite"),
    *("efficientnet", "albert", "detection"),
)
BEFORE = ("eager", "aoti", "onnxruntime", "onnxruntime-int8")

_TOML = """name = "{name}"
max_batch = 8
inputs = [{{ name = "x", {input} }}]
outputs = [{{ name = "y", datatype = "FP32", shape = [{width}] }}]
variants = [{{ name = "{name}", loader = "model:load" }}]
evaluation = {{ loader = "model:rows", metric = "agreement" }}
"""
_PICTURE = 'datatype = "FP32", shape = [3, 224, 224]'
_ROWS = """

def rows(folder, split):
    random = np.random.default_rng(0 if split == "calibration" else 1)
    return [{rows}], None
"""
_VISION = """import numpy as np
import torch
import torchvision

def load(variant, folder):
    torch.manual_seed(0)
    return torchvision.models.{function}().eval()
"""
_BERT = """import numpy as np
import torch
import transformers

class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)

    def forward(self, x):
        return self.bert(input_ids=x).last_hidden_state.mean(dim=1)

def load(variant, folder):
    torch.manual_seed(0)
    return Pooled().eval()
"""
_PICTURES = "random.standard_normal((200, 3, 224, 224), np.float32)"
SHAPES = {
    "resnet50": (_PICTURE, 1000, _VISION.format(function="resnet50"), _PICTURES),
    "mobilenet_v3": (_PICTURE, 1000, _VISION.format(function="mobilenet_v3_large"), _PICTURES),
    "bert_base": ('datatype = "INT64", shape = [64]', 768, _BERT, "random.integers(0, 30_000, (200, 64))"),
}
"""Declared input, width of the output, the code that builds the network, and its rows."""

COLUMNS = ("family", "variant", "backend", "alone", "in batches", "accuracy %", "same answers", "chosen, or why not")
SUMMARY = ("family", "variant", "eager", "before", "now", "now / before", "by")


def by_shape(name: str, folder: Path) -> Path:
    """Write the family of the network `name` into a folder below `folder` and return that."""
    declared, width, code, rows = SHAPES[name]
    made = folder / name
    made.mkdir()
    (made / "family.toml").write_text(_TOML.format(name=name, input=declared, width=width))
    (made / "model.py").write_text(code + _ROWS.format(rows=rows))
    return made


def missing(family: str) -> str:
    """Return why a family cannot be measured here; "" if it can."""
    try:
        return published.caution(families.load_family(family))
    except CloverError as error:
        return str(error)


def profiled(family: str, cache: Path, more: list[str]) -> FamilyProfile:
    """Measure a family as a first start does; CalledProcessError if that fails."""
    file = cache / "profile.json"
    words = ["profile", family, "--quick", "--json", str(file), "--cache-dir", str(cache), *more]
    subprocess.run([sys.executable, "-m", "clover", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return msgspec.convert(json.loads(file.read_bytes())[0], FamilyProfile, strict=False)


def costs(profile: FamilyProfile, variant: str, backend: str) -> dict[int, float]:
    """Return CPU milliseconds a row by batch size."""
    mine = [m for m in profile.latency if (m.variant, m.backend) == (variant, backend)]
    found = {m.batch: m.cpu_s_per_row * 1e3 for m in mine if m.profile == mine[0].profile}
    behind = [one for one in profile.left_out if (one.variant, one.backend) == (variant, backend) and one.batch]
    return found or {one.batch: one.cpu_s_per_row * 1e3 for one in behind}


def tried(profile: FamilyProfile) -> Iterator[tuple[object, ...]]:
    """Give a row of `COLUMNS` for each backend of each variant."""
    reasons = {(one.variant, one.backend): one.why for one in profile.left_out}
    scores = {(one.variant, one.backend): one for one in profile.accuracy}
    for variant, chosen in profile.backend.items():
        names = dict.fromkeys(m.backend for m in profile.latency if m.variant == variant)
        names |= dict.fromkeys(name for of, name in reasons if of == variant)
        largest = max(costs(profile, variant, chosen))
        for name in names:
            cost, score = costs(profile, variant, name), scores.get((variant, name))
            yield (
                profile.family, variant, name,
                *(f"{cost[batch]:.3f}" if batch in cost else "" for batch in (1, largest)),
                f"{score.value:.2f}" if score else "", f"{score.agreement:.2%}" if score else "",
                "chosen" if name == chosen else reasons.get((variant, name), ""),
            )  # fmt: skip


def summary(profile: FamilyProfile) -> Iterator[tuple[object, ...]]:
    """Give a row of `SUMMARY` for each variant: CPU milliseconds a row, alone / in the largest batches."""
    for variant, chosen in profile.backend.items():
        old = [
            [one for one in part if one.variant == variant and one.backend in BEFORE]
            for part in (profile.accuracy, [m for m in profile.latency if m.profile == profile.latency[0].profile])
        ]
        before = choose_backend(*old)[0]  # type: ignore[arg-type]
        eager, then, now = (costs(profile, variant, name) for name in ("eager", before, chosen))
        largest = max(now)
        shown = [f"{cost.get(1, 0.0):.3f} / {cost.get(largest, 0.0):.3f}" for cost in (eager, then, now)]
        yield profile.family, variant, *shown, f"{1.0 / times(then, now):.2f}", chosen


def markdown(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Return a table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="by default all, and the three networks by shape")
    parser.add_argument("--json", default="", help="also write the profiles to this file")
    parser.add_argument("--markdown", default="", help="also write the tables to this file")
    options, more = parser.parse_known_args()  # what is not known here goes to `clover profile`
    every: list[tuple[object, ...]] = []
    short: list[tuple[object, ...]] = []
    absent: list[tuple[object, ...]] = []
    found = {}
    for name in options.family or (*FAMILIES, *SHAPES):
        with tempfile.TemporaryDirectory() as folder:
            family = str(by_shape(name, Path(folder))) if name in SHAPES else name
            if reason := missing(family):
                absent.append((name, reason))
                continue
            began = time.monotonic()
            try:
                profile = profiled(family, Path(folder), more)
            except subprocess.CalledProcessError as error:
                absent.append((name, f"clover profile ended with exit code {error.returncode}"))
                continue
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            every += tried(profile)
            short += summary(profile)
            found[profile.family] = msgspec.to_builtins(profile)
    cores = provenance()["cores"]
    show(f"CPU milliseconds a row, alone and in the largest batches, measured; {cores} cores", COLUMNS, every)
    show("before and now, alone / in the largest batches", SUMMARY, short)
    show("not measured here", ("family", "why"), absent)
    write_json(options.json, found)
    if options.markdown:
        tables = (SUMMARY, short), (COLUMNS, every), (("not measured here", "why"), absent)
        Path(options.markdown).write_text(os.linesep.join(markdown(*table) for table in tables))


if __name__ == "__main__":
    main()
