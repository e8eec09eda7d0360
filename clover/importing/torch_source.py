"""Drafts of torch modules, by what `probe` finds of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from clover.backends import child_environment
from clover.families.declaration import LOADER
from clover.importing.draft import DraftError, DraftVariant, FamilyDraft, scores_of, template
from clover.importing.findings import ProbeAnswer, ProbedModule, ProbeOrder
from clover.types import TensorSpec

_PROBE_S = 900.0


@dataclass(frozen=True)
class TorchRequest:
    """What a family is to be made of: `targets` from cheap to dear or in any order, `weights` beside them, `inputs` as
    they were given."""

    name: str
    targets: tuple[str, ...]
    weights: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()


def draft_of(request: TorchRequest, scratch: Path) -> FamilyDraft:
    """Return the draft of torch modules; their weights are written into `scratch`.  Raises DraftError."""
    for target in request.targets:
        if not LOADER.fullmatch(target):
            raise DraftError(
                f"{target!r} is not module:Class, module:function, an ONNX file, or a folder of a Triton model"
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
        )
    )
    first = answer.modules[-1]
    for module in answer.modules:
        _check_alike(module, first)
    return _own(request, answer, scratch)


def _ask(order: ProbeOrder) -> ProbeAnswer:
    """Return what the probing process finds.  Raises DraftError."""
    environment = {**os.environ, **child_environment()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "clover.importing.probe"],
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


def _check_alike(module: ProbedModule, other: ProbedModule) -> None:
    """Raise DraftError if two variants take or give something else."""
    for verb, mine, theirs in (("takes", module.inputs, other.inputs), ("gives", module.outputs, other.outputs)):
        if mine != theirs:
            shown = [", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in each) for each in (mine, theirs)]
            raise DraftError(
                f"{module.target} {verb} {shown[0]} and {other.target} {shown[1]}: variants of a family answer "
                "the same question on the same tensors; make families of them, or say what they take with --input"
            )


def _own(request: TorchRequest, answer: ProbeAnswer, scratch: Path) -> FamilyDraft:
    """Return the draft of what was found of the modules."""
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


def _warning(module: ProbedModule) -> str:
    return "; UNTRAINED: random weights" if module.untrained else ""


def _half(variant: DraftVariant) -> DraftVariant:
    """Return the same variant in half precision: proposed if there is a GPU; on CPU cores it is slower than float32."""
    return DraftVariant(
        name=f"{variant.name}-fp16",
        weights=variant.weights,
        untrained=variant.untrained,
        precision="fp16",
        parameters={"build": variant.name},
        comment="the same in half precision: there is a GPU here",
    )


def _weights(answer: ProbeAnswer, scratch: Path) -> dict[str, Path]:
    return {module.weights: scratch / module.weights for module in answer.modules if module.weights}


def _local_file(module: str) -> Path | None:
    """Return the file of a module of one file in the current folder; None for an installed one.

    Raises DraftError for a package that is found from here only: workers would not find it.
    """
    top = module.partition(".")[0]
    here = Path.cwd()
    if (here / f"{top}.py").is_file() and top == module:
        return here / f"{top}.py"
    if (here / top).is_dir() and not _is_installed(top):
        raise DraftError(
            f"{module} is a package of this folder, which workers do not see: install it (`pip install -e .`), or give "
            "a module of one file, which is copied"
        )
    return None


def _is_installed(name: str) -> bool:
    """Return whether a module is found from anywhere, and not from the current folder only."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return spec is not None and not any(Path(place).resolve().parent == Path.cwd() for place in places)
