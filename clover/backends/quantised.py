"""ONNX Runtime in eight bits on CPU cores: weights and activations as whole numbers, by static quantisation.

The exported model is rewritten with pairs of QuantizeLinear and DequantizeLinear (QDQ), between which ONNX Runtime runs
convolutions and matrices in int8: weights with a scale per output channel, activations with the range that they had on
rows of the calibration split, which no accuracy is measured on.  Processors with instructions for such products (VNNI,
AMX, Arm's dot product) take a third of the energy of float32 for a wide convolution; narrow models gain little.

Its answers differ a little from the module's.  How much is measured: the profiler holds it against the answers and the
accuracy of eager (`clover.profiling.choose`), and the accuracy that plans count on, the confidence and the cascades are
measured with the backend that is chosen.

The artifact is `model.onnx` again, made from that of `onnxruntime`, which is made first if it is missing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from clover.backends import parity
from clover.backends.artifacts import CompileOrder, artifact_dir, build, is_compiled, machine_key
from clover.backends.onnxruntime import MODEL, OnnxRuntimeBackend, session
from clover.backends.targets import CPU, Target
from clover.backends.tensors import cannot_round
from clover.errors import ProfileError
from clover.families.onnx_files import external_bytes
from clover.types import FamilySpec, VariantSpec

CALIBRATION_ROWS = 512
"""Rows whose activations give the ranges."""


class QuantisedBackend(OnnxRuntimeBackend):
    """Quantises what `onnxruntime` exported, and runs it in the same way."""

    name = "onnxruntime-int8"

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" if `onnxruntime` takes a float32 variant of a family with rows to calibrate on; else why not."""
        if reason := super().supports(family, variant, target):
            return reason
        if reason := cannot_round(family, variant):
            return reason
        if not any(tensor.datatype in ("FP32", "FP64") for tensor in family.model_outputs(variant)):
            return f"family {family.name} has no outputs of floating-point numbers"
        return ""

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Write the quantised `model.onnx`.  Raises ProfileError if the exporter or the quantiser cannot do it."""
        reason = self.available() or self.supports(family, variant, target)
        if reason:
            raise ProfileError(reason)
        plain = made(OnnxRuntimeBackend(), family, variant, folder) / MODEL
        rows = parity.rows_of(family, variant, CALIBRATION_ROWS)
        names = [item.name for item in session(plain, 1).get_inputs()]
        quantise(plain, folder / MODEL, CalibrationFeed(rows, names, family))
        self._check(family, variant, folder, [array[:1] for array in rows])


class CalibrationFeed:
    """Gives ONNX Runtime's calibration the rows as its `CalibrationDataReader` does, in batches of the largest size."""

    def __init__(self, rows: list[NDArray[Any]], names: list[str], family: FamilySpec) -> None:
        self._rows = rows
        self._names = names
        self._batch = family.max_batch
        self._at = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by input; None after the last one."""
        at, self._at = self._at, self._at + self._batch
        batch = [np.ascontiguousarray(array[at : self._at]) for array in self._rows]
        return dict(zip(self._names, batch, strict=True)) if len(batch[0]) else None

    def __len__(self) -> int:
        return -(-len(self._rows[0]) // self._batch)


STARTS_FROM = {
    QuantisedBackend.name: OnnxRuntimeBackend.name,
    "openvino": OnnxRuntimeBackend.name,
    "openvino-bf16": OnnxRuntimeBackend.name,
    "openvino-int8": QuantisedBackend.name,
}
"""The backend whose artifact compiling for a backend starts from."""


def starts_from(order: CompileOrder) -> CompileOrder | None:
    """Return the order for the artifact that compiling `order` starts from; None if it starts from nothing."""
    source = STARTS_FROM.get(order.backend)
    if source is None:
        return None
    family = order.family
    place = _place(source, family, family.variant(order.variant), Path(order.folder))
    return structs.replace(order, backend=source, folder=str(place), threads=1)


def _place(source: str, family: FamilySpec, variant: VariantSpec, folder: Path) -> Path:
    """Return where the artifact of backend `source` lies, beside that in `folder`."""
    cache = next((above.parent for above in folder.parents if above.name == "artifacts"), folder / "source")
    return artifact_dir(cache, family, variant, source, 1)


def made(source: OnnxRuntimeBackend, family: FamilySpec, variant: VariantSpec, folder: Path) -> Path:
    """Return the artifact of `source` that lies beside that in `folder`; it is compiled if it is missing."""
    place = _place(source.name, family, variant, folder)
    order = CompileOrder(family=family, variant=variant.name, backend=source.name, folder=str(place), threads=1)
    if not is_compiled(place):
        build(source, order)
    return place


def quantise(source: Path, made: Path, feed: CalibrationFeed) -> None:
    """Write `source` with int8 weights (a scale a channel) and activations (ranges as `feed` shows them) to `made`.
    Raises ProfileError."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            fused = Path(folder) / MODEL
            quant_pre_process(str(_in_one_file(source, Path(folder))), str(fused), skip_symbolic_shape=True)
            quantize_static(
                str(fused),
                str(made),
                feed,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=saturates(machine_key()),
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
    except ProfileError:
        raise
    except Exception as error:  # each step raises its own kinds, some of them bare
        raise ProfileError(f"ONNX Runtime does not quantise it: {' '.join(str(error).split())[:300]}") from error


def _in_one_file(source: Path, folder: Path) -> Path:
    """Return `source`, or if its weights lie in files beside it (as exporters write by themselves) a copy in `folder`
    that holds them.  Raises ProfileError if they are more than one file may hold."""
    import onnx

    # The quantiser's first step writes the model anew into a folder of its own, where it then looks for those files.
    beside = external_bytes(source)
    if not beside:
        return source
    if (size := source.stat().st_size + beside) >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ProfileError(f"with its weights it has {size / 1e9:.1f} GB, and what is quantised has 2 GB at most")
    inlined = folder / "inlined.onnx"
    onnx.save(onnx.load(str(source)), str(inlined))
    return inlined


def saturates(machine: str) -> bool:
    """Return whether sums of two int8 products overflow 16 bits on a processor of this key: x86 without VNNI.  Weights
    take seven bits there."""
    architecture, _, flags = machine.partition(" ")
    return architecture in ("x86_64", "AMD64", "i686") and "vnni" not in flags
