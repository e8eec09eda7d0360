"""An ensemble of Triton models as one family: its models run one after the other in the worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from clover.scaffold.draft import DraftError, DraftVariant, FamilyDraft, scores_of, template
from clover.scaffold.triton_config import Message, message_of, messages_of, number_of, pairs_of, text_of
from clover.scaffold.triton_models import TritonModel, notes_of, plain_draft, read, signature_of


@dataclass(frozen=True)
class _Part:
    """A step of an ensemble: a model, the ensemble's tensor for each of its inputs, and for each of its outputs."""

    model: str
    version: int
    takes: dict[str, str]
    gives: dict[str, str]


def ensemble_draft(model: TritonModel) -> FamilyDraft:
    """Return the draft of an ensemble.  Raises DraftError."""
    scheduling = message_of(model.config, "ensemble_scheduling")
    if scheduling is None:
        raise DraftError("platform is ensemble, and ensemble_scheduling is missing")
    signature = signature_of(model)
    if signature.inside:
        raise DraftError("reshape of an ensemble's tensors is not done: reshape those of its models")
    parts = [_part(message) for message in messages_of(scheduling, "step")]
    ordered = _ordered(parts, {one.name for one in signature.inputs})
    made = {name for part in ordered for name in part.gives.values()}
    if lost := [one.name for one in signature.outputs if one.name not in made]:
        raise DraftError(f"output {lost[0]!r} is made by none of its steps")
    files: dict[str, str | bytes] = {}
    copies: dict[str, Path] = {}
    rows, max_batch, notes = [], signature.max_batch, list(signature.notes)
    for index, part in enumerate(ordered):
        draft = _draft_of(model, part)
        place = f"part{index}"
        files |= {f"{place}/{path}": text for path, text in draft.files.items()}
        copies |= {f"{place}/{path}": source for path, source in draft.copies.items()}
        for listed, wired, what in ((draft.inputs, part.takes, "input"), (draft.outputs, part.gives, "output")):
            if strange := set(wired) - {one.name for one in listed}:
                raise DraftError(f"its model {part.model} has no {what} {strange.pop()!r}")
        if open_ := [one.name for one in draft.inputs if one.name not in part.takes]:
            raise DraftError(f"input {open_[0]!r} of its model {part.model} is given by nothing")
        variant = draft.variants[0]
        rows.append(
            (
                place,
                variant.kind,
                variant.weights,
                tuple(part.takes[one.name] for one in draft.inputs),
                tuple(part.gives.get(one.name, "") for one in draft.outputs),
                tuple(one.datatype for one in draft.outputs),
            )
        )
        max_batch = min(max_batch, draft.max_batch)
    listed_rows = "(\n" + "".join(f"    {row!r},\n" for row in rows) + ")"
    imports = "\n".join(f"from .part{index} import model as part{index}" for index in range(len(rows)))
    modules = "{" + ", ".join(f'"part{index}": part{index}' for index in range(len(rows))) + "}"
    notes.append(
        "its models run one after the other in one worker; [steps] may do what comes before and after the model"
    )
    return FamilyDraft(
        name=model.name,
        version=str(model.version),
        source=f"Triton's ensemble {model.name} of {', '.join(part.model for part in ordered)}",
        inputs=signature.inputs,
        outputs=signature.outputs,
        variants=(DraftVariant(name="ensemble", kind="python", comment=" > ".join(part.model for part in ordered)),),
        max_batch=max_batch,
        confidence=scores_of(signature.outputs, logits=True),
        files=files
        | {
            "model.py": template(
                "ensemble_model",
                imports=imports,
                modules=modules,
                parts=listed_rows,
                inputs=tuple(one.name for one in signature.inputs),
                outputs=tuple(one.name for one in signature.outputs),
            )
        },
        copies=copies,
        notes=tuple(notes),
    ).noting(*notes_of(model))


def _part(message: Message) -> _Part:
    takes, gives = pairs_of(message, "input_map"), pairs_of(message, "output_map")
    name = text_of(message, "model_name")
    if not name or not takes or not gives:
        raise DraftError(f"step {name or '?'}: model_name, input_map and output_map are needed")
    return _Part(name, number_of(message, "model_version", -1), takes, gives)


def _ordered(parts: list[_Part], there: set[str]) -> list[_Part]:
    """Return the steps so that each has its inputs.  Raises DraftError if they go round in a circle."""
    left, ordered, known = list(parts), list[_Part](), set(there)
    while left:
        ready = next((part for part in left if set(part.takes.values()) <= known), None)
        if ready is None:
            made = known | {name for part in left for name in part.gives.values()}
            lost = next((name for part in left for name in part.takes.values() if name not in made), "")
            if lost:
                raise DraftError(f"tensor {lost!r} is made by none of its steps")
            raise DraftError(f"its steps wait for each other in a loop: {', '.join(part.model for part in left)}")
        left.remove(ready)
        ordered.append(ready)
        known |= set(ready.gives.values())
    return ordered


def _draft_of(model: TritonModel, part: _Part) -> FamilyDraft:
    """Return the draft of a step's model.  Raises DraftError, which names it."""
    folder = model.folder.parent / part.model
    if not folder.is_dir() or folder.parent != model.folder.parent:
        raise DraftError(f"its model {part.model} is not in the repository")
    try:
        found = read(folder, model.bounds)
        if part.version > 0:
            if not (folder / str(part.version)).is_dir():
                raise DraftError(f"version {part.version} is not there")
            found = replace(found, version=part.version)
        if found.backend == "ensemble":
            raise DraftError("an ensemble within an ensemble is not imported: name its models themselves")
        return plain_draft(found)
    except DraftError as error:
        raise DraftError(f"its model {part.model} cannot be imported: {error}") from error
