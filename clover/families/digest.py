"""Digests of families and variants: what invalidates a profile and a compiled artifact."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from clover.digests import sha256_of
from clover.families.declaration import FILE
from clover.families.onnx_files import external_files
from clover.steps import STEPS
from clover.types import FamilySpec, VariantSpec

_named: dict[str, list[str]] = {}
"""Files that ONNX files name, by the sha256 of these: a server asks for digests at every swap."""


def python_files(folder: Path) -> list[Path]:
    """Return the Python files that a family consists of, sorted: all below its folder.

    Without a `family.toml` that marks the folder as the family's own, only its top level: a family that is declared in
    a module may lie in the middle of a whole project.
    """
    pattern = "**/*.py" if (folder / FILE).is_file() else "*.py"
    return sorted(path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)


def digest(spec: FamilySpec, variants: tuple[VariantSpec, ...]) -> str:
    """Return the sha256 of the declaration, the Python files and the weights of `variants`, wherever they lie,
    with the files in which ONNX files keep theirs."""
    declared = msgspec.to_builtins(msgspec.structs.replace(spec, folder="", digest=""))
    del declared["manifest"]  # what it lists counts, not how it was listed
    if spec.confidence is None:
        del declared["confidence"]  # artifacts that were compiled before cascades existed stay valid
    if spec.steps is None:
        del declared["steps"]  # the same of steps
        for variant in declared["variants"]:
            _without_steps(variant)
    else:
        for variant in declared["variants"]:
            _without_published(variant)
    total = hashlib.sha256(msgspec.json.encode(declared, order="sorted"))
    if spec.folder:
        folder = Path(spec.folder)
        files = [*python_files(folder), *(folder / variant.weights for variant in variants if variant.weights)]
        files += files_of(spec, folder, variants)
        declaration = folder / FILE
        if declaration.is_file() and variants == spec.variants:
            files.append(declaration)
        for path in files:
            total.update(f"\n{path.relative_to(folder).as_posix()} {sha256_of(path)}".encode())
        for name in sorted({name for one in variants for name in _beside(folder, one.weights)}):
            total.update(f"\n{name} {sha256_of(folder / name)}".encode())
    return total.hexdigest()


def _beside(folder: Path, weights: str) -> list[str]:
    """Return the files that hold what an ONNX file of weights keeps outside itself, as seen from the family's folder.

    What is no ONNX file although it is called so, and a file that is missing, are the worker's to refuse.
    """
    if not weights.endswith(".onnx"):
        return []
    content = sha256_of(folder / weights)
    if content not in _named:
        try:
            _named[content] = external_files(folder / weights)
        except ValueError:
            _named[content] = []
    place = Path(weights).parent
    return [(place / name).as_posix() for name in _named[content] if os.path.isfile(folder / place / name)]


def digest_of_variant(spec: FamilySpec, variant: str | VariantSpec) -> str:
    """Return the sha256 of what a compiled artifact of one variant depends on.

    That is its declaration, the family's tensors and batch limit, the Python files, and its own weights; not another
    variant's weights, nor any accuracy.  Raises KeyError for a name the family does not have.
    """
    chosen = spec.variant(variant) if isinstance(variant, str) else variant
    return _digest_alone(spec, msgspec.structs.replace(chosen, accuracy=None))


def structure_of_variant(spec: FamilySpec, variant: str | VariantSpec) -> str:
    """Return `digest_of_variant` without weights and version: variants with equal ones differ in numbers only."""
    chosen = spec.variant(variant) if isinstance(variant, str) else variant
    return _digest_alone(spec, msgspec.structs.replace(chosen, accuracy=None, weights="", version=""))


def _without_steps(variant: dict[str, Any]) -> dict[str, Any]:
    """Remove what steps made of a variant's tensors from its declaration, and return that."""
    del variant["inputs"], variant["outputs"]
    return _without_published(variant)


def _without_published(variant: dict[str, Any]) -> dict[str, Any]:
    """Remove from the declaration of a variant that nothing is published of it, and return that."""
    if variant["published"] is None:
        del variant["published"], variant["untrained"]
    return variant


def files_of(spec: FamilySpec, folder: Path, variants: tuple[VariantSpec, ...]) -> list[Path]:
    """Return the files of a family's folder that its steps read, also those that a step has by default or a parameter
    of these variants names."""
    tables = () if spec.steps is None else (*spec.steps.before, *spec.steps.after)
    paths: set[str] = set()
    for table in tables:
        fields = msgspec.structs.fields(STEPS[str(table["step"])])
        usual = {field.name: field.default for field in fields}
        named = str(table.get("file", usual.get("file", "")))
        of_variants = [str(variant.parameters.get(named[1:], "")) for variant in variants]
        paths.update(of_variants if named.startswith("$") else [named])
    names = sorted(paths - {""})
    return [path for name in names if (path := folder / name).is_file()]


def _digest_alone(spec: FamilySpec, chosen: VariantSpec) -> str:
    """Return the sha256 of `spec` as if `chosen` were its only variant."""
    alone = msgspec.structs.replace(
        spec,
        inputs=spec.model_inputs(chosen),
        outputs=spec.model_outputs(chosen),
        variants=(),
        evaluation=None,
        confidence=None,
        steps=None,
        description="",
        licence="",
    )
    total = hashlib.sha256(digest(alone, (chosen,)).encode())
    total.update(msgspec.json.encode(_without_steps(msgspec.to_builtins(chosen)), order="sorted"))
    return total.hexdigest()
