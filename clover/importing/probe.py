"""A process that builds torch modules and looks at what they take and give: `python -m clover.importing.probe`.

It reads one `ProbeOrder` (JSON, one line) and writes one `ProbeAnswer`, or `{"error": ...}`.  It runs the user's code.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from clover.importing.findings import ProbeAnswer, ProbedModule, ProbeOrder
from clover.types import TensorSpec

if TYPE_CHECKING:
    import torch


def run(order: ProbeOrder) -> ProbeAnswer:
    """Return what is found of the modules of an order.  Raises what their code raises, and ValueError."""
    import torch

    sys.path.insert(0, os.getcwd())
    notes: list[str] = []
    modules, inputs = list[ProbedModule](), order.inputs
    # From behind: what the dearest takes, the others probably take too, and more is known of a convolution's input.
    for index in reversed(range(len(order.targets))):
        file = order.weights[index] if index < len(order.weights) else ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            target = order.targets[index]
            try:
                module = _probe_module(target, file, msgspec.structs.replace(order, inputs=inputs), notes)
            except Exception as error:
                known = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"{target}: {known}") from error
        modules.insert(0, module)
        inputs = module.inputs
    names = [module.name for module in modules]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"two variants would be called {twice!r}: give their classes or functions different names")
    modules.sort(key=lambda module: module.parameters)  # stable: those of one size stay as they were given
    return ProbeAnswer(modules=tuple(modules), cuda=torch.cuda.is_available(), notes=tuple(notes))


def _probe_module(target: str, file: str, order: ProbeOrder, notes: list[str]) -> ProbedModule:
    import torch

    module = _make_module(target)
    untrained = False
    if file:
        module.load_state_dict(_state(file))
    elif untrained := _is_random(target, module):
        notes.append(
            f"{target} is UNTRAINED, its answers mean nothing: it was built with random weights, and no --weights were "
            "given for it"
        )
    module.eval()
    name = target.rpartition(":")[2].lower()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        inputs, given, keys = _try_inputs(module, order.inputs)
    tensors = tuple(
        TensorSpec(name=key, datatype=_datatype(one), shape=tuple(one.shape[1:]))
        for key, one in zip(_output_names(given, keys), given, strict=True)
    )
    return ProbedModule(
        name=name,
        target=target,
        inputs=inputs,
        outputs=tensors,
        parameters=sum(one.numel() for one in module.parameters()),
        weights=_save_rows(module, name, Path(order.folder)),
        untrained=untrained,
        keys=keys,
        probabilities=_adds_up(given[0]),
    )


def _adds_up(output: torch.Tensor) -> bool:
    """Return whether an output holds several values a row that are positive and add up to 1."""
    flat = output.reshape(len(output), -1).double()
    whole = bool(((flat.sum(1) - 1).abs() < 1e-3).all() and (flat >= 0).all())
    return output.is_floating_point() and flat.shape[1] > 1 and whole


def _make_module(target: str) -> torch.nn.Module:
    """Return what module:Class or module:function of the user's makes, or the nn.Module of that name."""
    import importlib

    import torch

    library, _, name = target.partition(":")
    value = getattr(importlib.import_module(library), name, None)
    if value is None:
        raise ValueError(f"module {library} has no {name}")
    made = value if isinstance(value, torch.nn.Module) else value()
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"{target} gives a {type(made).__name__}, and not an nn.Module")
    return made


def _is_random(target: str, module: torch.nn.Module) -> bool:
    """Return whether a module of the user's is built with random weights: another seed gives others."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = _make_module(target).state_dict()
    return any(key not in other or not torch.equal(value, other[key]) for key, value in module.state_dict().items())


def _state(file: str) -> dict[str, Any]:
    import torch

    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        return dict(load_file(file))
    state = torch.load(file, map_location="cpu", weights_only=True)
    return dict(state.get("state_dict", state))


def _save_rows(module: torch.nn.Module, name: str, folder: Path) -> str:
    """Write the state of a module and return the file's path in the folder; "" if it has none."""
    if not module.state_dict():
        return ""
    from safetensors.torch import save_model

    path = f"weights/{name}.safetensors"
    (folder / "weights").mkdir(exist_ok=True)
    save_model(module, str(folder / path))
    return path


def _try_inputs(
    module: torch.nn.Module, given: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], list[torch.Tensor], tuple[str, ...]]:
    """Return the inputs that a module takes, what it gives for three rows of them, and the keys of a mapping.

    Raises ValueError if none of the proposed ones works.
    """
    from collections.abc import Mapping

    import torch

    faults = []
    for inputs in [given] if given else list(_propose_inputs(module)):
        try:
            answer = module(*[_example(part) for part in inputs])
        except Exception as error:
            faults.append(f"{', '.join(f'{part.datatype} {list(part.shape)}' for part in inputs)}: {error}")
            continue
        keys = tuple(map(str, answer)) if isinstance(answer, Mapping) else ()
        parts = list(answer.values()) if keys else list(answer) if isinstance(answer, (tuple, list)) else [answer]
        odd = [part for part in parts if not isinstance(part, torch.Tensor) or part.ndim == 0 or len(part) != 3]
        if odd:
            what = list(odd[0].shape) if isinstance(odd[0], torch.Tensor) else type(odd[0]).__name__
            faults.append(
                f"three rows went in, and {what} came out: outputs are tensors that begin with the batch axis"
            )
            continue
        return inputs, parts, keys
    text = " ".join((faults[0] if faults else "nothing is known of what it takes").split())[:400]
    raise ValueError(f"{text}: say what it takes with --input NAME:DATATYPE:SHAPE, as in --input image:FP32:3,224,224")


def _propose_inputs(module: torch.nn.Module) -> Iterator[tuple[TensorSpec, ...]]:
    """Yield inputs that a module may take, by its first layer."""
    import torch.nn as nn

    names = [
        one.name
        for one in inspect.signature(module.forward).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ] or ["input"]
    name = "input" if names[0] in ("x", "args") else names[0]
    for layer in module.modules():
        shapes: list[tuple[int, ...]] = []
        datatype = "FP32"
        if isinstance(layer, nn.Linear):
            shapes = [(layer.in_features,), *_squares(layer.in_features)]
        elif isinstance(layer, nn.Conv2d):
            shapes = [(layer.in_channels, side, side) for side in (224, 32, 28, 64, 96, 128, 299, 8, 16)]
        elif isinstance(layer, nn.Conv1d):
            shapes = [(layer.in_channels, size) for size in (1024, 16000, 128, 64)]
        elif isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
            shapes = [(32, layer.input_size)]
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            shapes, datatype = [(128,), (32,)], "INT64"
        if shapes:
            for shape in shapes:
                yield (TensorSpec(name=name, datatype=datatype, shape=shape),)
            return


def _squares(size: int) -> Iterator[tuple[int, ...]]:
    """Yield pictures of so many values: behind a Flatten may stand one."""
    for channels in (1, 3):
        side = round((size / channels) ** 0.5)
        if size > 3 and channels * side * side == size:
            yield (channels, side, side)
            yield (side, side) if channels == 1 else (side, side, 3)


def _example(tensor: TensorSpec) -> torch.Tensor:
    """Return three rows."""
    import torch

    shape = (3, *tensor.bound)
    if tensor.datatype in ("FP32", "FP64", "FP16", "BF16"):
        kinds = {"FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float16, "BF16": torch.bfloat16}
        return torch.randn(shape).to(kinds[tensor.datatype])
    if tensor.datatype == "BOOL":
        return torch.ones(shape, dtype=torch.bool)
    if tensor.datatype not in (kinds := {"INT64": torch.int64, "INT32": torch.int32, "UINT8": torch.uint8}):
        raise ValueError(f"an example of {tensor.datatype} cannot be made: use one of FP32, INT64, INT32, UINT8, BOOL")
    return torch.ones(shape, dtype=kinds[tensor.datatype])


def _datatype(tensor: torch.Tensor) -> str:
    import torch

    kinds = {
        torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.bfloat16: "BF16",
        torch.int64: "INT64", torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8",
        torch.uint8: "UINT8", torch.bool: "BOOL",
    }  # fmt: skip
    if tensor.dtype not in kinds:
        raise ValueError(f"it gives a tensor of {tensor.dtype}, which the protocol has no type for: convert it")
    return kinds[tensor.dtype]


def _output_names(given: list[torch.Tensor], keys: tuple[str, ...]) -> list[str]:
    return list(keys) or (["output"] if len(given) == 1 else [f"output_{index}" for index in range(len(given))])


def main() -> int:
    """Answer one order on standard input; return 0."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProbeOrder)
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print on standard output
    try:
        answer = run(order)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:800]
        expected = isinstance(error, ValueError)
        answer = ProbeAnswer(error=text if expected and text else f"{type(error).__name__}: {text}")
    os.write(answers, msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
