"""Drafts of torch modules, and of torchvision, timm and transformers names, by what `probe` finds of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from clover.backends import child_environment
from clover.families.declaration import LOADER
from clover.scaffold.draft import DraftError, DraftVariant, FamilyDraft, scores_of, template
from clover.scaffold.findings import ProbeAnswer, ProbedModule, ProbeOrder
from clover.types import TensorSpec

LIBRARIES = ("torchvision", "timm", "transformers")
_PROBE_S = 900.0
_MOST_BYTES = 4_000_000
"""Bytes of a picture that clients may send."""


@dataclass(frozen=True)
class TorchRequest:
    """What a family is to be made of: `targets` from cheap to dear or in any order, `weights` beside them, `inputs` as
    they were given, `most` variants of a published name."""

    name: str
    targets: tuple[str, ...]
    weights: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    most: int = 3
    untrained: bool = False


def draft_of(request: TorchRequest, scratch: Path) -> FamilyDraft:
    """Return the draft of torch modules; their weights are written into `scratch`.  Raises DraftError."""
    for target in request.targets:
        if target.partition(":")[0] not in LIBRARIES and not LOADER.fullmatch(target):
            raise DraftError(
                f"{target!r} is not module:Class, module:function, {', '.join(f'{one}:NAME' for one in LIBRARIES)}, "
                "an ONNX file, or a folder of a Triton model"
            )
    for file in request.weights:
        if file and not Path(file).is_file():
            raise DraftError(f"--weights: there is no file {file}")
    if len(request.weights) > len(request.targets):
        raise DraftError(f"--weights: {len(request.weights)} files for {len(request.targets)} --from: one for each")
    answer = _ask(
        ProbeOrder(
            targets=request.targets,
            folder=str(scratch),
            weights=tuple(str(Path(file).resolve()) if file else "" for file in request.weights),
            inputs=request.inputs,
            most=request.most,
            untrained=request.untrained,
        )
    )
    first = answer.modules[-1]
    for one in answer.modules:
        _check_alike(one, first)
    library = request.targets[0].partition(":")[0]
    if library in LIBRARIES:
        return replace(_published(library, answer, scratch), name=request.name)
    return _own(request, answer, scratch)


def _ask(order: ProbeOrder) -> ProbeAnswer:
    """Return what the probing process finds.  Raises DraftError."""
    environment = {**os.environ, **child_environment()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "clover.scaffold.probe"],
            input=msgspec.json.encode(order) + b"\n",
            stdout=subprocess.PIPE,
            timeout=_PROBE_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DraftError(f"{', '.join(order.targets)}: not built and run in {_PROBE_S:g} s") from error
    if not done.stdout:
        raise DraftError(f"{', '.join(order.targets)}: the process that builds it ended with {done.returncode}")
    answer = msgspec.json.decode(done.stdout, type=ProbeAnswer)
    if answer.error:
        raise DraftError(answer.error)
    return answer


def _check_alike(one: ProbedModule, other: ProbedModule) -> None:
    """Raise DraftError if two variants take or give something else; pictures may differ in size, which steps make."""
    if one.preset.get("image") and other.preset.get("image"):
        return
    for verb, mine, theirs in (("takes", one.inputs, other.inputs), ("gives", one.outputs, other.outputs)):
        if mine != theirs:
            shown = [", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in each) for each in (mine, theirs)]
            raise DraftError(
                f"{one.target} {verb} {shown[0]} and {other.target} {shown[1]}: variants of a family answer the same "
                "question on the same tensors; make families of them, or say what they take with --input"
            )


def _own(request: TorchRequest, answer: ProbeAnswer, scratch: Path) -> FamilyDraft:
    """Return the draft of modules of the user's own."""
    builds, copies, notes = {}, _weights(answer, scratch), [*answer.notes]
    for one in answer.modules:
        module, _, attribute = one.target.partition(":")
        file = _local_file(module)
        if file is not None:
            copies[file.name] = file
        builds[one.name] = (module, attribute, file is not None)
    if any(local for _, _, local in builds.values()):
        notes.append("the modules were copied into the folder: change them there, weights and shapes belong to them")
    dearest = answer.modules[-1]
    imports = sorted({f"from . import {m}" if local else f"import {m}" for m, _, local in builds.values()})
    table = ",\n".join(f'    "{name}": {module}.{attribute}' for name, (module, attribute, _) in builds.items())
    variants = [
        DraftVariant(
            name=one.name,
            weights=one.weights,
            untrained=one.untrained,
            comment=f"{one.parameters:,} parameters, built by {one.target}{_warning(one)}",
        )
        for one in answer.modules
    ]
    if answer.cuda:
        variants.insert(-1, _half(variants[-1]))
    elif len(variants) == 1:
        notes.append(
            "there is one variant, so there is nothing to choose: a second --from, a smaller module that answers the "
            "same question, makes a family of two"
        )
    return FamilyDraft(
        name=request.name,
        source=", ".join(request.targets),
        inputs=dearest.inputs,
        outputs=dearest.outputs,
        variants=tuple(variants),
        confidence=scores_of(dearest.outputs, logits=not dearest.probabilities),
        files={
            "model.py": template(
                "torch_model", imports="\n".join(imports), builds="{\n" + table + ",\n}", keys=dearest.keys
            )
        },
        copies=copies,
        notes=tuple(notes),
    )


def _published(library: str, answer: ProbeAnswer, scratch: Path) -> FamilyDraft:
    """Return the draft of models that a library publishes."""
    dearest = answer.modules[-1]
    preset = dearest.preset
    labels = preset.get("labels") or []
    files: dict[str, str | bytes] = {}
    outputs = dearest.outputs
    if library == "transformers":
        files["model.py"] = template("transformers_model", names=tuple(preset["names"]))
        steps: dict[str, Any] = text_steps(preset["text"]["length"], dearest.inputs, outputs[0], labels)
        inputs = dearest.inputs
    else:
        files["model.py"] = template("published_model", library=library)
        channels = dearest.inputs[0].shape[0]
        sides = [one.preset["image"]["size"] for one in answer.modules]
        shape = (channels, -1, -1)
        inputs = (
            TensorSpec(name="pixels", datatype="FP32", shape=shape, max_shape=(channels, max(sides), max(sides))),
        )
        steps = image_steps(preset["image"], outputs[0], labels, by_variant=True)
        if labels:
            files["labels.txt"] = "\n".join(labels) + "\n"
    variants = [_known(one) for one in answer.modules]
    if answer.cuda:
        variants.insert(-1, _half(variants[-1]))
    copies = _weights(answer, scratch)
    if library == "transformers":
        copies |= {"tokenizer.json": scratch / "tokenizer.json", "config": scratch / "config"}
    return FamilyDraft(
        name="",
        source=f"{dearest.target}" + (f" and {len(answer.modules) - 1} smaller siblings" if len(variants) > 1 else ""),
        inputs=inputs,
        outputs=outputs,
        variants=tuple(variants),
        max_batch=8,
        steps=steps,
        confidence=scores_of(outputs, logits=True),
        files=files,
        copies=copies,
        notes=answer.notes,
    )


def _known(one: ProbedModule) -> DraftVariant:
    image = one.preset.get("image") or {}
    return DraftVariant(
        name=one.name.replace(":", "-"),
        weights=one.weights,
        parameters={key: image[key] for key in ("resize", "size") if key in image},
        accuracy=one.preset.get("accuracy"),
        published=one.preset.get("published"),
        untrained=one.untrained and bool(one.weights),  # where published ones are missing, each start finds it out
        comment=f"{one.parameters:,} parameters{_warning(one)}",
    )


def _warning(one: ProbedModule) -> str:
    return "; UNTRAINED: random weights" if one.untrained else ""


def _half(variant: DraftVariant) -> DraftVariant:
    """Return the same variant in half precision: proposed if there is a GPU; on CPU cores it is slower than float32."""
    return DraftVariant(
        name=f"{variant.name}-fp16",
        weights=variant.weights,
        untrained=variant.untrained,
        precision="fp16",
        parameters={**variant.parameters, "build": variant.name},
        published=variant.published,
        comment="the same in half precision: there is a GPU here",
    )


def image_steps(
    image: dict[str, Any], output: TensorSpec, labels: Sequence[str], *, by_variant: bool = False
) -> dict[str, Any]:
    """Return [steps] from a JPEG or PNG to pixels; and from logits to the names of the five likeliest classes, if their
    `labels` are known.  `by_variant`: sizes are the variants' parameters."""
    resize, size = ("$resize", "$size") if by_variant else (image["resize"], image["size"])
    steps: dict[str, Any] = {
        "run": "worker",
        "inputs": [TensorSpec(name="image", datatype="BYTES", shape=(1,), max_bytes=_MOST_BYTES)],
        "before": [
            {"step": "decode-image", **({"mode": "L"} if len(image["mean"]) == 1 else {})},
            {"step": "resize", "size": resize, "method": image["method"]},
            {"step": "crop", "size": size},
            {"step": "normalise", "mean": image["mean"], "std": image["std"]},
        ],
    }
    if labels:
        count = min(5, len(labels))
        room = max(len(label.encode()) for label in labels) + 4
        steps["after"] = [
            {"step": "softmax"},
            {"step": "top-k", "k": count, "output": "probabilities"},
            {"step": "labels", "file": "labels.txt"},
            {"step": "labels", "file": "labels.txt", "input": "index", "output": "label"},
        ]
        steps["outputs"] = [
            TensorSpec(name="index", datatype="INT64", shape=(1,)),
            TensorSpec(name="label", datatype="BYTES", shape=(1,), max_bytes=room),
            TensorSpec(name="labels", datatype="BYTES", shape=(count,), max_bytes=count * room),
            TensorSpec(name="probabilities", datatype="FP32", shape=(count,)),
        ]
    return steps


def text_steps(length: int, inputs: Sequence[TensorSpec], output: TensorSpec, labels: Sequence[str]) -> dict[str, Any]:
    """Return [steps] from a text to token ids, and from logits to probabilities of `labels`."""
    return {
        "run": "worker",
        "inputs": [TensorSpec(name="text", datatype="BYTES", shape=(1,), max_bytes=65_536)],
        "before": [{"step": "tokenise", "file": "tokenizer.json", "length": length, "pad": "length"}],
        "after": [{"step": "softmax", "output": "probabilities"}],
        "outputs": [
            TensorSpec(name="probabilities", datatype="FP32", shape=output.shape, labels=tuple(labels)),
        ],
    }


def _weights(answer: ProbeAnswer, scratch: Path) -> dict[str, Path]:
    return {one.weights: scratch / one.weights for one in answer.modules if one.weights}


def _local_file(module: str) -> Path | None:
    """Return the file of a module of one file in the current folder; None for an installed one.

    Raises DraftError for a package that is found from here only: workers would not find it.
    """
    top = module.partition(".")[0]
    here = Path.cwd()
    if (here / f"{top}.py").is_file() and top == module:
        return here / f"{top}.py"
    if (here / top).is_dir() and not _installed(top):
        raise DraftError(
            f"{module} is a package of this folder, which workers do not see: install it (`pip install -e .`), or give "
            "a module of one file, which is copied"
        )
    return None


def _installed(name: str) -> bool:
    """Return whether a module is found from anywhere, and not from the current folder only."""
    found = importlib.util.find_spec(name)
    places = list(found.submodule_search_locations or []) if found is not None else []
    return found is not None and not any(Path(place).resolve().parent == Path.cwd() for place in places)
