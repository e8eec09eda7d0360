"""Families: finding them, reading `family.toml`, checking it, and calling the Python beside it.

    family = clover.load_family("fashion")             # or a folder with `family.toml`, or "module:attribute"
    print([variant.name for variant in family.variants])

`family.toml` maps key by key onto `types.FamilySpec`; every error names the file and the key.

    declaration   the file's name, the words and datatypes that it may use
    find          from a name, a folder or module:attribute to a checked `FamilySpec`
    validate      the checks
    digest        what changes when a family, or one variant, changes
    onnx_files    the files in which ONNX files keep their weights
    loaders       "module:function" -> the function
    evaluation    labelled rows
    manifest      the SHA-256 of its files, if it has one

The server reads families and their evaluation rows but never torch: a loader of evaluation rows that imports it is
refused.  Torch belongs to the workers, which call `resolve` on the loaders of variants.
"""

from __future__ import annotations

from clover.families.declaration import (
    AGREEMENT,
    CONFIDENCES,
    DATATYPES,
    FILE,
    MAX_RANK,
    PRECISIONS,
    SPLITS,
    TOP1,
    by_agreement,
)
from clover.families.digest import digest_of_variant, structure_of_variant
from clover.families.evaluation import load_evaluation
from clover.families.find import chosen, load_family, reference, shipped
from clover.families.loaders import check_loaders, resolve
from clover.families.manifest import check_manifest

__all__ = [
    "AGREEMENT",
    "CONFIDENCES",
    "DATATYPES",
    "FILE",
    "MAX_RANK",
    "PRECISIONS",
    "SPLITS",
    "TOP1",
    "by_agreement",
    "check_loaders",
    "check_manifest",
    "chosen",
    "digest_of_variant",
    "load_evaluation",
    "load_family",
    "reference",
    "resolve",
    "shipped",
    "structure_of_variant",
]
