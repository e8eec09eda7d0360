"""The draft of a family that will be written, and the text of its `family.toml`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clover.errors import CloverError
from clover.hints import printable
from clover.types import TensorSpec

TEMPLATES = Path(__file__).with_name("templates")
"""The Python that is written into families."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLACE = re.compile(r"__([A-Z]+(?:_[A-Z]+)*)__")


class DraftError(CloverError):
    """No family can be made of what was given.  The text says what to do; what steers a terminal is escaped in it."""

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(map(printable, text.split("\n"))))


@dataclass(frozen=True)
class DraftVariant:
    """One variant; `comment` stands above it.  `untrained`: the file of its weights holds random ones."""

    name: str
    loader: str = "model:load"
    kind: str = "torch"
    weights: str = ""
    untrained: bool = False
    precision: str = "fp32"
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    comment: str = ""


@dataclass(frozen=True)
class FamilyDraft:
    """What will be written.

    `inputs` and `outputs` are the model's; `steps` is the table [steps].  `files` are written (by their path in the
    folder), `copies` copied from elsewhere, `links` (rows, which may be many) linked if they can be, else copied.
    `notes` are said to the user, and stand in the README.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[DraftVariant, ...]
    source: str = ""
    version: str = "1"
    description: str = ""
    licence: str = ""
    max_batch: int = 32
    steps: Mapping[str, Any] | None = None
    confidence: Mapping[str, Any] | None = None
    evaluation: Mapping[str, str] | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    links: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def noting(self, *notes: str) -> FamilyDraft:
        """Return the draft with more notes."""
        return replace(self, notes=(*self.notes, *map(printable, notes)))

    def holding(self, **files: str | bytes) -> FamilyDraft:
        """Return the draft with more Python files, by the name of their module."""
        return replace(self, files={**self.files, **{f"{name}.py": text for name, text in files.items()}})

    @property
    def sent(self) -> tuple[TensorSpec, ...]:
        """What clients send."""
        return tuple(self.steps["inputs"]) if self.steps else self.inputs


def template(name: str, /, **values: Any) -> str:
    """Return a template with each `__NAME__` filled in: texts as they are, other values as Python literals.  What was
    filled in is not looked at again."""
    text = (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        value = values[match[1].lower()]
        return value if isinstance(value, str) else repr(value)

    return _PLACE.sub(filled, text)


def scores_of(outputs: Sequence[TensorSpec], *, logits: bool) -> dict[str, Any] | None:
    """Return the table [confidence] of a first output of several floats; None for any other."""
    first = outputs[0]
    if first.datatype not in ("FP16", "FP32", "FP64") or len(first.shape) != 1 or first.shape[0] < 2:
        return None
    return {"kind": "margin", **({"logits": True} if logits else {})}


def toml_of(draft: FamilyDraft) -> str:
    """Return the text of `family.toml`."""
    head = [f"# Written by `clover family new` from {draft.source}, and yours to change: docs/families.md."]
    for key in ("name", "version", "description", "licence"):
        if text := getattr(draft, key):
            head.append(f"{key} = {toml_value(text)}")
    head.append(f"max_batch = {draft.max_batch} # most rows in one batch of the model")
    parts = ["\n".join(head)]
    before, after = ("; clients send and get what [steps] says", "") if draft.steps else ("", "")
    for key, tensors, about in (
        ("inputs", draft.inputs, f"what the model takes, a row: the batch axis is not written{before}"),
        ("outputs", draft.outputs, f"what it gives{after}"),
    ):
        for index, tensor in enumerate(tensors):
            parts.append(_table(f"[[{key}]]" + (f" # {about}" if index == 0 else ""), _tensor(tensor)))
    if draft.steps:
        parts.append(_steps(draft.steps))
    if draft.confidence:
        parts.append(_table("[confidence] # how sure an answer is, by which cascades decide", draft.confidence))
    for index, variant in enumerate(draft.variants):
        comment = [f"# {line}" for line in variant.comment.splitlines()]
        first = " # from cheap to dear" if index == 0 and len(draft.variants) > 1 else ""
        parts.append("\n".join([*comment, _table(f"[[variants]]{first}", _variant(variant))]))
    if draft.evaluation:
        parts.append(_table("[evaluation] # rows that variants are measured with", draft.evaluation))
    return "\n\n".join(parts) + "\n"


def toml_value(value: Any) -> str:
    """Return a value as TOML in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        # JSON escapes as TOML does, apart from DEL, which TOML wants escaped, and pairs of surrogates.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, TensorSpec):
        return toml_value(_tensor(value))
    if isinstance(value, Mapping):
        items = (
            f"{key if _BARE.fullmatch(key) else toml_value(key)} = {toml_value(item)}" for key, item in value.items()
        )
        return "{ " + ", ".join(items) + " }"
    return "[" + ", ".join(map(toml_value, value)) + "]"


def _table(head: str, values: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {toml_value(value)}" for key, value in values.items())])


def _steps(steps: Mapping[str, Any]) -> str:
    lines = ["[steps] # what is done to rows before and after the model", f"run = {toml_value(steps['run'])}"]
    for key in ("inputs", "before"):
        lines += [f"{key} = [", *(f"    {toml_value(row)}," for row in steps[key]), "]"]
    return "\n".join(lines)


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    for key in ("max_shape", "labels"):
        if value := getattr(tensor, key):
            entry[key] = list(value)
    return entry | ({"max_bytes": tensor.max_bytes} if tensor.max_bytes else {})


def _variant(variant: DraftVariant) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": variant.name, "loader": variant.loader}
    for key, usual in (("kind", "torch"), ("weights", ""), ("untrained", False), ("precision", "fp32")):
        if (value := getattr(variant, key)) != usual:
            entry[key] = value
    if variant.parameters:
        entry["parameters"] = variant.parameters
    return entry
