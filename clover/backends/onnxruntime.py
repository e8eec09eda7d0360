"""ONNX Runtime: the variant exported to ONNX, run by a session without spinning threads.  An optional extra."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import families
from clover.backends.artifacts import package_version
from clover.backends.targets import CPU, Target
from clover.backends.tensors import export, unsupported
from clover.errors import ProfileError, WorkerError
from clover.types import FamilySpec, VariantSpec

_log = logging.getLogger("clover.backends")

MODEL = "model.onnx"


class OnnxRuntimeBackend:
    """Exports with `torch.onnx.export(dynamo=True)`, runs on ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    compiles = True
    gpu_only = False
    imports: tuple[str, ...] = ("onnxruntime",)

    def available(self) -> str:
        """Return "" if the packages of the extra `onnx` are installed, else the reason why not."""
        missing = [name for name in ("onnxruntime", "onnx", "onnxscript", "torch") if not package_version(name)]
        if not missing:
            return ""
        lost = "without it variants run with the other backends only, which usually take more time and energy a row"
        return f"missing {', '.join(missing)}: install clover-inference[onnx]; {lost}"

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if `variant` is a torch module over tensors that NumPy has types for, and runs on CPU cores; else
        why not."""
        if target.cuda:
            return "it runs on CPU cores here, not on a GPU"
        return unsupported(family, variant, ("BF16",), half=False)

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write `model.onnx`.  Raises ProfileError if the exporter does not support the module."""
        reason = self.available() or self.supports(family, variant, target)
        if reason:
            raise ProfileError(reason)
        import torch

        module, arguments, shapes = export(family, variant)
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[tensor.name for tensor in family.model_inputs(variant)],
                output_names=[tensor.name for tensor in family.model_outputs(variant)],
                verbose=False,
            )
        for warning in caught:
            _log.debug("exporting %s: %s", variant.name, warning.message)
        if program is None:
            raise ProfileError(f"the exporter gave nothing for {variant.name}")
        program.save(str(folder / MODEL))
        self._check(family, variant, folder, [argument.numpy() for argument in arguments])

    def _check(self, family: FamilySpec, variant: VariantSpec, folder: Path, inputs: list[NDArray[Any]]) -> None:
        # The exporter may fix an axis it was told is dynamic, with no more than a warning: try one row and many.
        tried = session(folder / MODEL, 1)
        for rows in {1, family.max_batch}:
            feeds = {
                item.name: np.repeat(array[:1], rows, axis=0)
                for item, array in zip(tried.get_inputs(), inputs, strict=True)
            }
            answers = tried.run(None, feeds)
            if len(answers) != len(family.model_outputs(variant)) or any(len(answer) != rows for answer in answers):
                raise ProfileError(f"the exported model does not take batches of {rows}")

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the model (see `clover.interfaces.Backend`).  Raises WorkerError if the artifact is missing, and on a
        GPU."""
        loaded = session(on_cores(self.name, family, variant, Path(folder) / MODEL, device), threads)
        names = [item.name for item in loaded.get_inputs()]
        # Without names it would ask its outputs for theirs in each run: a tenth of what a small model takes for a row.
        outputs = [item.name for item in loaded.get_outputs()]

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            answers: list[NDArray[Any]] = loaded.run(outputs, dict(zip(names, inputs, strict=True)))
            return answers

        return run


def on_cores(backend: str, family: FamilySpec, variant: VariantSpec, path: Path, device: str) -> Path:
    """Return the file `path` of an artifact.  Raises WorkerError if it is missing, or `device` is a GPU."""
    if device != "cpu":
        raise WorkerError(f"{variant.name} cannot run with {backend} on a GPU: it runs on CPU cores here")
    if not path.is_file():
        command = f"python -m clover profile {families.reference(family)} --compile"
        raise WorkerError(f"{variant.name} is not compiled for {backend} here: run `{command}`")
    return path


def session(path: Path, threads: int) -> Any:
    """Return a session over the model at `path` on CPU cores, with `threads` threads that do not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Idle pool threads would spin on cores that other workers share, and their time would be counted as energy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
