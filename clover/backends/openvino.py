"""OpenVINO on CPU cores: the variant exported to ONNX, run in float32, bfloat16 or int8.  An optional extra.

`openvino` computes in float32.  `openvino-bf16` rounds products to bfloat16, on processors with instructions for them
(AVX-512 BF16, AMX).  `openvino-int8` runs the model that `onnxruntime-int8` quantised.  The two rounded ones differ
from the module a little: the profiler measures by how much, and what they have to spare (`clover.profiling.choose`).

The artifact is `model.xml` and `model.bin`, OpenVINO's own form, made from the model that `onnxruntime` exported or
quantised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clover.backends import quantised
from clover.backends.artifacts import lacks_bf16, package_version
from clover.backends.onnxruntime import MODEL, OnnxRuntimeBackend, on_cores
from clover.backends.quantised import QuantisedBackend
from clover.backends.targets import CPU, Target
from clover.backends.tensors import cannot_round, example_inputs
from clover.errors import ProfileError
from clover.types import FamilySpec, VariantSpec

GRAPH = "model.xml"


class OpenVinoBackend:
    """Runs variants by OpenVINO's CPU plugin in `precision`: "f32", "bf16" or "int8"."""

    compiles = True
    gpu_only = False
    imports: tuple[str, ...] = ()  # importing OpenVINO starts a thread, so each worker does it for itself

    def __init__(self, precision: str) -> None:
        self.name = "openvino" if precision == "f32" else f"openvino-{precision}"
        self._source = QuantisedBackend() if precision == "int8" else OnnxRuntimeBackend()
        self._hint = "bf16" if precision == "bf16" else "f32"

    def available(self) -> str:
        """Return "" if OpenVINO and what exports to ONNX are installed, and the processor has the precision; else why
        not."""
        if reason := self._source.available():
            return reason
        if not package_version("openvino"):
            return "missing openvino: install clover-inference[openvino]; heavy networks often take less with it"
        return lacks_bf16() if self._hint == "bf16" else ""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if `onnxruntime` (for int8 `onnxruntime-int8`) takes `variant`, else why not."""
        reason = self._source.supports(family, variant, target)
        return reason or (cannot_round(family, variant) if self._hint == "bf16" else "")

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write `model.xml` and `model.bin`.  Raises ProfileError if OpenVINO does not take the exported model."""
        reason = self.available() or self.supports(family, variant, target)
        if reason:
            raise ProfileError(reason)
        openvino = runtime()
        exported = quantised.made(self._source, family, variant, folder) / MODEL
        try:
            model = openvino.Core().read_model(str(exported))
            openvino.save_model(model, str(folder / GRAPH), compress_to_fp16=False)
            run = self.load(family, variant, folder, 1)
            for rows in {1, family.max_batch}:
                answers = run(example_inputs(family, variant, rows))
                if any(len(answer) != rows for answer in answers):
                    raise ProfileError(f"the model does not take batches of {rows} with OpenVINO")
        except RuntimeError as error:
            raise ProfileError(f"OpenVINO does not take it: {' '.join(str(error).split())[:300]}") from error

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the model (see `clover.interfaces.Backend`).  Raises WorkerError if the artifact is missing, and on a
        GPU."""
        path = on_cores(self.name, family, variant, Path(folder) / GRAPH, device)
        openvino = runtime()
        request = openvino.Core().compile_model(str(path), "CPU", {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the worker is pinned already
        }).create_infer_request()  # fmt: skip
        outputs = range(len(family.model_outputs(variant)))

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            for index, array in enumerate(inputs):
                request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
            request.infer(share_inputs=True)
            return [request.get_output_tensor(index).data for index in outputs]

        return run


def runtime() -> Any:
    """Return the package `openvino`, imported without its telemetry.

    The package `openvino-telemetry`, which comes with OpenVINO, writes an identifier of the user to the home folder
    when OpenVINO is imported, and reports use to a web analytics service.  OpenVINO works without that package.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # so that importing it raises
    import openvino

    return openvino
