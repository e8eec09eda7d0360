"""The models of a Triton repository: for each a draft, or a DraftError with the reason why there is none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clover.datatypes import DATATYPES
from clover.families.declaration import NAME
from clover.hints import printable
from clover.importing import folder as folders
from clover.importing import onnx_source
from clover.importing.draft import DraftError, DraftVariant, FamilyDraft, scores_of, template
from clover.importing.onnx_source import OnnxModel
from clover.importing.triton_config import (
    Message,
    last,
    message_of,
    messages_of,
    number_of,
    numbers_of,
    parse,
    text_of,
)
from clover.types import TensorSpec

CONFIG = "config.pbtxt"
BACKENDS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "caffe2_netdef": "caffe2",
    "ensemble": "ensemble",
}
"""The backend of each old word for a `platform`."""

FILES = {"onnxruntime": "model.onnx", "pytorch": "model.pt", "python": "model.py"}
REFUSED = {
    "ensemble": "ensembles are not imported: import their models one by one (a client asks them in turn), or make one "
    "model of them; [steps] of a family decodes, resizes, normalises and tokenises before the model",
    "tensorrt": "a TensorRT plan runs on the GPU and version that it was built for only: import the ONNX or torch "
    "model that it was built from; Clover builds a plan by itself",
    "tensorflow": "TensorFlow models are not run: export it to ONNX (tf2onnx)",
    "openvino": "OpenVINO models are not run: export it to ONNX",
    "dali": "DALI pipelines are not run: [steps] of a family decodes, resizes and normalises",
    "fil": "forests are not run: export it to ONNX (skl2onnx, onnxmltools)",
    "vllm": "generating text token by token is not what Clover serves",
    "tensorrtllm": "generating text token by token is not what Clover serves",
}
"""Backends of which the reason why not is known."""

_IGNORED = {
    "optimization": "what the profiler finds is used instead",
    "model_warmup": "workers warm up by themselves",
    "response_cache": "Clover's cache is set by the server (docs/configuration.md), and never across versions",
    "metric_tags": "metrics have the model's name",
    "model_repository_agents": "files are taken as they are",
    "cc_model_filenames": "no use",
    "runtime": "no use",
}
_READ = {
    *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "instance_group"),
    *("dynamic_batching", "default_model_filename", "parameters", "model_transaction_policy", "sequence_batching"),
    *("batch_input", "batch_output", "model_operations"),
}
_TEXT_BYTES = 65_536
_NUMBERED = re.compile(r"__([0-9]{1,9})$")


@dataclass(frozen=True)
class OpenBounds:
    """What Triton leaves open and a slab needs to know: the length of axes that vary, and bytes of a text."""

    axis: int = onnx_source.SEQUENCE
    text_bytes: int = _TEXT_BYTES


@dataclass(frozen=True)
class TritonModel:
    """A model's folder, its configuration, the version that is imported, and the others that Triton would serve."""

    folder: Path
    config: Message
    backend: str
    version: int
    others: tuple[int, ...]
    bounds: OpenBounds

    @property
    def name(self) -> str:
        """The model's name."""
        return text_of(self.config, "name") or self.folder.name

    @property
    def files(self) -> Path:
        """The folder of the version."""
        return self.folder / str(self.version)


def read(folder: Path, bounds: OpenBounds) -> TritonModel:
    """Return the model in `folder`.  Raises DraftError if it cannot be read, or asks for what Clover does not do."""
    config: Message = {}
    file = folder / CONFIG
    if os.path.lexists(file):
        text = folders.text_in(file, folder)
        try:
            config = parse(text)
        except DraftError as error:
            raise DraftError(f"{CONFIG}, {error}") from error
    backend = _backend(folder, config)
    if strange := sorted(set(config) - _READ - set(_IGNORED)):
        raise DraftError(f"{CONFIG}: the field {strange[0]!r} is not known, so that it may mean anything: remove it")
    for field, why in (
        ("sequence_batching", "sequences of requests that share a state are not served: every row stands for itself"),
        ("batch_input", "ragged batches are not served: rows of different shape never stand in one batch"),
        ("batch_output", "ragged batches are not served: rows of different shape never stand in one batch"),
    ):
        if config.get(field):
            raise DraftError(f"{field}: {why}")
    policy = message_of(config, "model_transaction_policy")
    if policy is not None and last(policy, "decoupled", False) is True:
        raise DraftError("decoupled: an answer of none or many parts a request is not served: one answer a request")
    version, others = _versions(folder, config)
    model = TritonModel(folder, config, backend, version, others, bounds)
    if not NAME.fullmatch(model.name) or model.name.startswith("."):
        raise DraftError(f"{model.name!r} is no name of a family (A-Z a-z 0-9 . _ -): rename the model")
    return model


def _backend(folder: Path, config: Message) -> str:
    """Return the backend of a model: as its configuration or its files say."""
    platform = text_of(config, "platform")
    named = text_of(config, "backend") or BACKENDS.get(platform, platform)
    if not named:
        named = next((backend for backend, file in FILES.items() if glob(f"*/{file}", root_dir=folder)), "")
    if not named:
        raise DraftError(f"neither {CONFIG} nor a file ({', '.join(FILES.values())}) says which backend it is for")
    if named not in FILES:
        raise DraftError(REFUSED.get(named, f"backend {named!r} is unknown: known are {', '.join(FILES)}"))
    return named


def _versions(folder: Path, config: Message) -> tuple[int, tuple[int, ...]]:
    """Return the newest version that Triton would serve, and the others."""
    there = sorted(
        int(path.name) for path in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", path.name) and os.path.isdir(path)
    )
    if not there:
        raise DraftError("it has no version: no folder 1, 2, ... with the model's files")
    policy = message_of(config, "version_policy") or {}
    chosen = there[-1:]
    if "all" in policy:
        chosen = there
    elif (specific := message_of(policy, "specific")) is not None:
        wanted = numbers_of(specific, "versions")
        chosen = [version for version in there if version in wanted]
        if not chosen:
            raise DraftError(f"version_policy: none of {list(wanted)} is there: {there}")
    elif (latest := message_of(policy, "latest")) is not None:
        chosen = there[-max(1, number_of(latest, "num_versions", 1)) :]
    return chosen[-1], tuple(chosen[:-1])


@dataclass(frozen=True)
class TritonSignature:
    """What a model takes and gives a row; `inside` has shapes that the model has instead; `rows` is the number of rows
    that its batches are fixed to (0: any)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    inside: dict[str, list[int]]
    rows: int
    max_batch: int
    notes: tuple[str, ...]


def signature_of(model: TritonModel) -> TritonSignature:
    """Return the signature that a configuration states.  Raises DraftError."""
    config, notes, inside = model.config, list[str](), dict[str, list[int]]()
    batch = number_of(config, "max_batch_size")
    heads: set[int] = set()
    listed: dict[str, list[TensorSpec]] = {"input": [], "output": []}
    for field, tensors in listed.items():
        for message in messages_of(config, field):
            tensor, head, own = _tensor(model, message, batched=batch > 0)
            tensors.append(tensor)
            heads |= {head}
            if own is not None:
                inside[tensor.name] = own
    for field, tensors in listed.items():
        if not tensors:
            raise DraftError(
                f"{CONFIG} names no {field}: Triton would ask the model; name them, with dims and data_type"
            )
    rows = 0
    if batch == 0:
        if len(heads) > 1 or heads == {0}:
            raise DraftError(
                "max_batch_size is 0, and its tensors do not begin with the same axis: a request has no rows. Export "
                "the model with a batch axis and say max_batch_size"
            )
        rows = max(heads.pop(), 0)
        notes.append("max_batch_size is 0: the first axis of every tensor is taken for the rows of a request")
    if any(one.variable for one in (*listed["input"], *listed["output"])):
        notes.append(f"axes of -1 are bounded by {model.bounds.axis} (--axis; max_shape in family.toml)")
    if any(one.datatype == "BYTES" for one in (*listed["input"], *listed["output"])):
        notes.append(f"texts are bounded by {model.bounds.text_bytes} bytes (--text-bytes; max_bytes in family.toml)")
    inputs, outputs = tuple(listed["input"]), tuple(listed["output"])
    return TritonSignature(inputs, outputs, inside, rows, min(batch, 4096) or 32, tuple(notes))


def _tensor(model: TritonModel, message: Message, *, batched: bool) -> tuple[TensorSpec, int, list[int] | None]:
    """Return a tensor a row, its first axis (1 if that is the batch's), and its shape in the model if it differs."""
    name = text_of(message, "name")
    for field, why in (
        ("is_shape_tensor", "shape tensors belong to TensorRT"),
        ("is_non_linear_format_io", "formats of TensorRT are not known"),
        ("optional", "every request carries every input"),
        ("allow_ragged_batch", "rows of different shape never stand in one batch"),
    ):
        if last(message, field, False) is True:
            raise DraftError(f"{name}: {field}: {why}")
    kind = text_of(message, "data_type").removeprefix("TYPE_")
    datatype = "BYTES" if kind == "STRING" else kind
    if not name or datatype not in DATATYPES:
        raise DraftError(
            f"{name or 'a tensor'}: data_type TYPE_{kind or '?'} is unknown: one of TYPE_{', TYPE_'.join(DATATYPES)}"
        )
    dims = list(numbers_of(message, "dims"))
    head = -1
    if not batched:
        head, dims = (dims[0] if dims else 0), dims[1:]
    if any(axis < 1 and axis != -1 for axis in dims):
        raise DraftError(f"{name}: dims {dims} are not positive, or -1")
    reshape = message_of(message, "reshape")
    bound = tuple(axis if axis > 0 else model.bounds.axis for axis in dims)
    room = model.bounds.text_bytes + 4 * int(np.prod(bound)) if datatype == "BYTES" else 0
    labels = _labels(model, message, bound)
    tensor = TensorSpec(
        name=name,
        datatype=datatype,
        shape=tuple(dims),
        max_shape=bound if -1 in dims else (),
        max_bytes=room,
        labels=labels,
    )
    inside = list(numbers_of(reshape, "shape")) if reshape is not None else None
    # Outputs come in the model's shape and leave as dims say; inputs the other way round.
    return tensor, head, inside


def _labels(model: TritonModel, message: Message, bound: Sequence[int]) -> tuple[str, ...]:
    file = text_of(message, "label_filename")
    if not file:
        return ()
    labels = tuple(folders.text_in(model.folder / file, model.folder).splitlines())
    return labels if len(labels) == int(np.prod(bound)) else ()


def notes_of(model: TritonModel) -> list[str]:
    """Return what of a configuration Clover does in another way, or not."""
    config = model.config
    notes = [f"{field} is left out: {why}" for field, why in _IGNORED.items() if config.get(field)]
    batching = message_of(config, "dynamic_batching")
    if batching is not None:
        sizes = numbers_of(batching, "preferred_batch_size")
        delay_us = number_of(batching, "max_queue_delay_microseconds")
        if sizes or delay_us:
            notes.append(
                f"dynamic_batching (sizes {list(sizes)}, delay {delay_us} us): the planner sets sizes and waits of "
                f"batches; --max-queue-delay-ms {delay_us / 1e3:g} bounds waits"
            )
        if rest := sorted(set(batching) - {"preferred_batch_size", "max_queue_delay_microseconds"}):
            notes.append(f"dynamic_batching: {', '.join(rest)} is left out")
    groups = messages_of(config, "instance_group")
    if groups:
        shown = ", ".join(f"{number_of(g, 'count', 1)} x {text_of(g, 'kind') or 'KIND_AUTO'}" for g in groups)
        notes.append(f"instance_group ({shown}): how many workers run where is planned (--device, --cores bound it)")
    if model.others:
        listed = ", ".join(map(str, model.others))
        notes.append(
            f"version {model.version} is imported, and not {listed}: roll versions out with `clover ctl roll-out`"
        )
    return notes


def draft_of(folder: Path, bounds: OpenBounds) -> FamilyDraft:
    """Return the draft of the model in `folder`.  Raises DraftError."""
    model = read(folder, bounds)
    name = text_of(model.config, "default_model_filename") or FILES[model.backend]
    if "/" in name or name in (".", ".."):
        raise DraftError(f"default_model_filename: {name!r} is no plain name of a file in the folder of the version")
    file = model.files / name
    if not os.path.lexists(file):
        raise DraftError(f"there is no {model.version}/{name}")
    draft = {"onnxruntime": _onnx, "pytorch": _torch, "python": _python}[model.backend](model, file)
    return replace(
        draft,
        name=model.name,
        version=str(model.version),
        source=f"Triton's model {model.name}, version {model.version}",
    ).noting(*notes_of(model))


def _draft(signature: TritonSignature, variant: DraftVariant, code: str, copies: dict[str, Path]) -> FamilyDraft:
    return FamilyDraft(
        name="",
        inputs=signature.inputs,
        outputs=signature.outputs,
        variants=(variant,),
        max_batch=signature.max_batch,
        confidence=scores_of(signature.outputs, logits=True),
        files={"model.py": code},
        copies=copies,
        notes=signature.notes,
    )


def _onnx(model: TritonModel, file: Path) -> FamilyDraft:
    onnx_source.require()
    source = file / "model.onnx" if os.path.isdir(file) else file
    folders.inside(source, model.folder)
    for beside in onnx_source.external(source):
        folders.inside(beside, model.folder)
    if not model.config.get("input") and not model.config.get("output"):
        draft = onnx_source.look_at(source)
        signature = TritonSignature(draft.inputs, draft.outputs, {}, draft.rows, 32, draft.notes)
    else:
        signature = signature_of(model)
        draft = OnnxModel(source, signature.inputs, signature.outputs, signature.rows)
        takes, gives = onnx_source.names_of(source)
        for listed, there, what in ((signature.inputs, takes, "input"), (signature.outputs, gives, "output")):
            if lost := [one.name for one in listed if one.name not in there]:
                raise DraftError(f"the model has no {what} {lost[0]!r}: it has {', '.join(there)}")
        if lost := [name for name in takes if name not in {one.name for one in signature.inputs}]:
            raise DraftError(f"the model takes {lost[0]!r}, too, which {CONFIG} does not name")
    copies = onnx_source.copies_of(source, "model")
    weights = next(iter(copies))
    variant = DraftVariant(name="onnx", kind="python", weights=weights, comment="as Triton has it")
    code = onnx_source.model_py(draft, _reshapes(signature))
    return replace(
        _draft(signature, variant, code, copies),
        confidence=scores_of(signature.outputs, logits=not draft.probabilities),
    )


def _reshapes(signature: TritonSignature) -> dict[str, list[int]]:
    """Return what rows are reshaped to: inputs to the model's shape, outputs to the one that clients get."""
    found = {
        tensor.name: signature.inside[tensor.name] for tensor in signature.inputs if tensor.name in signature.inside
    }
    return found | {tensor.name: list(tensor.shape) for tensor in signature.outputs if tensor.name in signature.inside}


def _by_number(tensors: tuple[TensorSpec, ...]) -> tuple[tuple[TensorSpec, ...], bool]:
    """Return tensors by the number that ends their names (`INPUT__0`), and whether all have one; if not, as given."""
    matches = [_NUMBERED.search(tensor.name) for tensor in tensors]
    places = [int(match[1]) for match in matches if match is not None]
    if len(places) < len(tensors):
        return tensors, False
    return tuple(tensor for _, tensor in sorted(zip(places, tensors, strict=True), key=lambda pair: pair[0])), True


def _torch(model: TritonModel, file: Path) -> FamilyDraft:
    signature = signature_of(model)
    if signature.rows > 1:
        raise DraftError(f"its batches are fixed to {signature.rows} rows: export it with an open first axis")
    keywords: tuple[str, ...] = ()
    inputs, are_numbered = _by_number(signature.inputs)
    if not are_numbered and len(inputs) > 1:
        keywords = tuple(tensor.name for tensor in inputs)
    ordered = replace(signature, inputs=inputs, outputs=_by_number(signature.outputs)[0])
    code = template(
        "torchscript_model",
        inputs=tuple(tensor.name for tensor in ordered.inputs),
        outputs=tuple(tensor.name for tensor in ordered.outputs),
        keywords=keywords,
        reshaped=_reshapes(ordered),
        row_by_row=ordered.rows == 1,
    )
    variant = DraftVariant(name="torchscript", weights="weights/model.pt", comment="as Triton has it, TorchScript")
    draft = _draft(ordered, variant, code, {"weights/model.pt": folders.inside(file, model.folder)})
    return draft.noting(
        "TorchScript runs eagerly only: with the module itself (`clover family new --from module:Class`) the profiler "
        "may compile it"
    )


def _python(model: TritonModel, file: Path) -> FamilyDraft:
    text = folders.text_in(file, model.folder)
    for word, why in (
        (
            "InferenceRequest(",
            "it calls other models (BLS), which is not served: import those, or make one model of it",
        ),
        ("get_response_sender", "it sends answers in parts (decoupled), which is not served"),
        (".to_dlpack", "it hands tensors over by DLPack, which is not served: use as_numpy()"),
    ):
        if word in text:
            raise DraftError(why)
    signature = signature_of(model)
    if signature.rows > 1:
        raise DraftError(f"its batches are fixed to {signature.rows} rows: write it for any number")
    parameters = {
        text_of(entry, "key"): text_of(message_of(entry, "value") or {}, "string_value")
        for entry in messages_of(model.config, "parameters")
    }
    config = {
        "name": model.name,
        "max_batch_size": number_of(model.config, "max_batch_size"),
        "input": [_describe(message) for message in messages_of(model.config, "input")],
        "output": [_describe(message) for message in messages_of(model.config, "output")],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    code = template(
        "python_backend_model",
        config=repr(json.dumps(config)),
        version=repr(str(model.version)),
        inputs=tuple(tensor.name for tensor in signature.inputs),
        outputs=tuple(tensor.name for tensor in signature.outputs),
    )
    variant = DraftVariant(name="python", kind="python", comment="Triton's Python backend")
    files = {f"backend/{name}": path for name, path in folders.below(model.files, model.folder).items()}
    draft = _draft(signature, variant, code, files)
    notes = ["its model.py is called with one request, the whole batch, through a small triton_python_backend_utils"]
    if "EXECUTION_ENV_PATH" in parameters:
        notes.append("EXECUTION_ENV_PATH is left out: what it imports must be installed where the server runs")
    return draft.noting(*notes)


def _describe(message: Message) -> dict[str, Any]:
    return {
        "name": text_of(message, "name"),
        "data_type": text_of(message, "data_type"),
        "dims": list(numbers_of(message, "dims")),
    }


class ImportedModel(NamedTuple):
    """A model by the name of its folder: its backend ("" if that is not known), and a draft or the reason why not."""

    name: str
    backend: str
    draft: FamilyDraft | None
    reason: str


def models_of(repository: Path, bounds: OpenBounds) -> Iterator[ImportedModel]:
    """Yield the models of a repository, sorted by name.  Raises DraftError if it has none."""
    if not repository.is_dir():
        raise DraftError(f"{repository} is no folder: name the folder that `tritonserver --model-repository` has")
    folders = [path for path in sorted(repository.iterdir()) if os.path.isdir(path) and not path.name.startswith(".")]
    if not folders:
        raise DraftError(f"{repository} holds no folders, so no models")
    if (repository / CONFIG).is_file():
        raise DraftError(
            f"{repository} is a model itself: name the repository, or `clover family new --from {repository}`"
        )
    for folder in folders:
        backend, name = "", printable(folder.name)
        try:
            if not NAME.fullmatch(folder.name):
                raise DraftError("its folder's name is none of a family (A-Z a-z 0-9 . _ -): rename it")
            if not folder.resolve().is_relative_to(repository.resolve()):
                raise DraftError(f"it is {folder.resolve()}, outside of {repository}: name that with family new --from")
            backend = read(folder, bounds).backend
            yield ImportedModel(name, backend, draft_of(folder, bounds), "")
        except DraftError as error:
            yield ImportedModel(name, backend, None, str(error))
