"""TensorRT as far as it can be checked without a GPU: what is asked of the library, the store, parity, and its errors.

The library is played by `Library`, which takes what torch-tensorrt takes (`torch_tensorrt_facts`) and makes "engines"
that are exported programs on the CPU.  What only a GPU can show is in `tests/gpu`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import backends, families
from clover.backends import artifacts, cuda, parity, targets, tensorrt
from clover.backends.artifacts import CompileOrder, Recipe, recipe
from clover.backends.trt_engine import TensorRtEngine
from clover.errors import ConfigError, DeviceError, ProfileError, WorkerError
from clover.types import TensorSpec
from tests.support.lazy import LazyModule
from tests.support.played_tensorrt import PlayedTensorRt, Recorded

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

FAMILIES = Path(__file__).parents[2] / "families"
SUPPORT = Path(__file__).parents[2] / "support"
WHOLE = targets.Target(gpu="NVIDIA A100-SXM4-40GB", profile="7g.40gb", driver="580.65", uuid="GPU-1", visible="MIG-7")
SMALL = msgspec.structs.replace(WHOLE, profile="1g.5gb", visible="MIG-1")


def load_facts():
    spec = importlib.util.spec_from_file_location("facts", SUPPORT / "torch_tensorrt_facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


facts = load_facts()


@pytest.fixture(scope="module")
def toy():
    return families.load_family(str(FAMILIES / "toy"))


# --- the library, played ----------------------------------------------------------------------------------------------


def compiled(program, error):
    """A "compiled" program: one child that is an engine, as the library names it."""
    module = torch.nn.Module()
    module._run_on_acc_0 = program.module()
    module.program = program
    module.error = error
    return module


class Pickled:
    """An engine as the library keeps it in a loaded program."""

    def __init__(self, data, names, engine=None):
        self.state = ["9", "_run_on_acc_0_engine", "0%8%0%0%GPU", base64.b64encode(data).decode(), *names, "0"]

    def __getstate__(self):
        return (tuple(self.state),)


class Loaded:
    """What loading gives: a program whose module may be asked for without guards, and holds its engine."""

    def __init__(self, path, program):
        self.data = Path(path).read_bytes()
        self.inputs = program.graph_signature.user_inputs

    def module(self, check_guards=True):
        assert check_guards is False
        return SimpleNamespace(_run_on_acc_0_engine=Pickled(self.data, ("%".join(self.inputs), "output0")))


class Library:
    """Takes what torch-tensorrt takes, refuses what it does not, and remembers what it was asked."""

    def __init__(self, error=0.0):
        self.asked = []
        self.error = error
        self.dynamo = self.runtime = self

    def _check(self, name, given):
        self.asked.append((name, given))
        unknown = set(given) - facts.PARAMETERS[name]
        assert not unknown, f"{name} does not take {unknown}"

    def compile(self, exported_program, **given):
        self._check("dynamo.compile", given)
        assert isinstance(exported_program, torch.export.ExportedProgram)
        return compiled(exported_program, self.error)

    def Input(self, **given):
        assert set(given) <= facts.INPUT
        assert ("shape" in given) != ({"min_shape", "opt_shape", "max_shape"} <= set(given))
        self.asked.append(("Input", given))
        return given

    def save(self, module, file_path, **given):
        self._check("save", given)
        assert given["output_format"] == "exported_program"
        assert all(isinstance(item, torch.Tensor) for item in given["arg_inputs"])
        torch.export.save(module.program, file_path, extra_files={"error": str(module.error)})

    def load(self, file_path):
        return Loaded(file_path, torch.export.load(file_path))


@pytest.fixture
def on_cpu(monkeypatch):
    """Everything around the library as on a GPU, on torch's CPU device."""
    here = {
        "device": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "multiprocessors": 14,
        "tensorrt": "11.0.0",
    }
    library = Library()
    runner = cuda.Runner
    monkeypatch.setattr(tensorrt, "_library", lambda failure: library)
    monkeypatch.setattr(tensorrt, "_here", lambda: dict(here))
    monkeypatch.setattr(tensorrt.TensorRtBackend, "available", lambda self: "")
    monkeypatch.setattr(cuda, "for_building", lambda variant, target: "cpu")
    monkeypatch.setattr(
        cuda, "Runner", lambda *args, device, **named: runner(*args, device="cpu", record=Recorded, **named)
    )
    library.engines = PlayedTensorRt()
    monkeypatch.setattr(tensorrt, "runtime_library", lambda failure: library.engines)
    monkeypatch.setattr(tensorrt, "TensorRtEngine", functools.partial(TensorRtEngine, device="cpu"))
    library.here = here
    return library


def build(family, variant, cache, target=SMALL):
    folder = backends.artifact_dir(cache, family, variant, "tensorrt", 1, target=target)
    spec = msgspec.structs.replace(family, variants=(variant,))
    order = CompileOrder(
        family=spec, variant=variant.name, backend="tensorrt", folder=str(folder), threads=1, target=target
    )
    artifacts.build(tensorrt.TensorRtBackend(), order)
    return folder


def record_of(folder):
    return msgspec.json.decode((folder / tensorrt.ENGINE).read_bytes(), type=tensorrt.EngineRecord)


# --- what the library is asked for ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_engine_is_built_checked_kept_and_loaded(toy, on_cpu, tmp_path):
    variant = toy.variant("full")
    folder = build(toy, variant, tmp_path)
    assert folder.relative_to(tmp_path / "artifacts").parts[:3] == ("tensorrt", "nvidia-a100-sxm4-40gb", "1g.5gb")
    (name, shape), (_, settings) = [item for item in on_cpu.asked if item[0] in ("Input", "dynamo.compile")]
    assert name == "Input"
    assert shape == {
        "min_shape": (1, 4), "opt_shape": (8, 4), "max_shape": (8, 4), "dtype": torch.float32
    }  # fmt: skip
    assert settings["min_block_size"] == 1
    assert settings["require_full_compilation"]
    assert settings["disable_tf32"]
    # The cache of timings belongs to this GPU and profile, and outlives the build's own folder.
    assert Path(settings["timing_cache_path"]).parent == folder.parent
    record = record_of(folder)
    assert (record.precision, record.max_batch) == ("fp32", 8)
    assert record.difference < 1
    manifest = artifacts.manifest_of(folder)
    assert (manifest.recipe.profile, manifest.recipe.driver, manifest.variant) == ("1g.5gb", "580.65", "full")
    run = tensorrt.TensorRtBackend().load(toy, variant, folder, 1, "cuda")
    rows = np.random.RandomState(1).standard_normal((8, 4)).astype(np.float32)
    truth = backends.get("eager").load(toy, variant, folder, 1)
    for count in (1, 3, 8):
        np.testing.assert_allclose(run([rows[:count]])[0], truth([rows[:count]])[0], atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == [
        "artifact.json",
        "engine.json",
        "model.engine",
    ]
    assert (record.inputs, record.outputs) == (("numbers",), ("output0",))


@pytest.mark.slow
def test_half_precision_goes_in_as_half(toy, on_cpu, tmp_path):
    half = msgspec.structs.replace(toy.variant("full"), name="half16", precision="fp16")
    folder = build(toy, half, tmp_path)
    assert [given["dtype"] for name, given in on_cpu.asked if name == "Input"] == [torch.float16]
    (answer,) = tensorrt.TensorRtBackend().load(toy, half, folder, 1, "cuda")([np.ones((2, 4), np.float32)])
    assert answer.dtype == np.float32
    assert record_of(folder).precision == "fp16"


def test_tf32_is_allowed_to_tf32_alone(tmp_path):
    allowed = {p: not tensorrt.compile_settings(p, tmp_path)["disable_tf32"] for p in families.PRECISIONS}
    assert allowed == {"fp32": False, "tf32": True, "fp16": False}
    asked = set(tensorrt.compile_settings("fp32", tmp_path)) | {"arg_inputs"}
    assert asked <= facts.PARAMETERS["dynamo.compile"]
    assert not asked & facts.GONE
    assert "immutable_weights" not in asked, "false builds engines to refit: slower, and wrong in TensorRT 11"
    for name, default in facts.DEFAULTS.items():
        assert tensorrt.compile_settings("fp32", tmp_path)[name] != default


def test_shapes_of_inputs(toy):
    fixed = TensorSpec(name="x", datatype="FP32", shape=(3, 5))
    free = TensorSpec(name="x", datatype="FP32", shape=(3, -1), max_shape=(3, 7))
    one = msgspec.structs.replace(toy, max_batch=1)
    assert tensorrt.shape_range(toy, fixed)["min_shape"] == (1, 3, 5)
    assert tensorrt.shape_range(toy, fixed)["opt_shape"] == tensorrt.shape_range(toy, fixed)["max_shape"] == (8, 3, 5)
    assert tensorrt.shape_range(toy, free) == {
        "min_shape": (1, 3, 1), "opt_shape": (8, 3, 7), "max_shape": (8, 3, 7)
    }  # fmt: skip
    assert tensorrt.shape_range(one, fixed) == {"shape": (1, 3, 5)}


@pytest.mark.slow
def test_launches_of_each_size_are_recorded_from_a_context_of_their_own(toy, on_cpu, tmp_path):
    variant = toy.variant("full")
    folder = build(toy, variant, tmp_path)
    on_cpu.engines.made.clear()
    run = tensorrt.TensorRtBackend().load(toy, variant, folder, 1, "cuda")
    run.record_launches()
    assert run.recorded == (1, 2, 3, 4, 6, 8)
    (engine,) = on_cpu.engines.made
    assert all(len(context.shapes) == 1 for context in engine.contexts), "no context sees batches of another size"
    assert len({context.memory for context in engine.contexts}) == 1, "their activations share one piece of memory"
    assert {context.memory[1] for context in engine.contexts} == {engine.device_memory_size_v2}
    assert run([np.ones((5, 4), np.float32)])[0].shape == (5, 4)
    one = msgspec.structs.replace(toy, max_batch=1)
    build(one, one.variant("full"), tmp_path)
    assert [given["dynamic_shapes"] for name, given in on_cpu.asked if name == "save"][-1] is None


@pytest.mark.slow
def test_a_model_taken_in_parts_is_refused(toy, on_cpu, tmp_path, monkeypatch):
    for children in ({}, {"_run_on_acc_0": 1, "_run_on_gpu_1": 1}):
        module = torch.nn.Module()
        for child in children:
            module.add_module(child, torch.nn.Identity())
        monkeypatch.setattr(on_cpu, "compile", lambda program, module=module, **given: module)
        with pytest.raises(ProfileError, match="does not take the whole model"):
            build(toy, toy.variant("full"), tmp_path)
    assert not any(backends.is_compiled(path) for path in tmp_path.rglob("toy-*"))


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_engine_that_differs_is_refused_and_not_kept(toy, on_cpu, tmp_path):
    on_cpu.error = 0.02
    with pytest.raises(ProfileError, match=r"full is refused: for 1 rows, .* differs by 0\.\d+ .*allowed in fp32"):
        build(toy, toy.variant("full"), tmp_path)
    assert not any(backends.is_compiled(path) for path in tmp_path.rglob("toy-*"))


def test_parity_of_arrays():
    truth = np.array([[1.0, -4.0], [0.5, 2.0]], np.float32)
    assert parity.difference(truth, truth) == 0
    assert parity.difference(truth + np.float32(0.4), truth) == pytest.approx(0.1)
    assert parity.difference(truth[:1], truth) == np.inf
    assert parity.difference(np.zeros(2), np.zeros(2)) == 0
    assert parity.difference(np.empty((0, 3)), np.empty((0, 3))) == 0
    nan = np.array([np.nan, 1.0])
    assert parity.difference(nan, nan) == 0
    assert parity.difference(np.array([1.0, 1.0]), nan) == np.inf
    infinite = np.array([np.inf, 1.0])
    assert parity.difference(infinite, infinite) == 0
    assert parity.difference(-infinite, infinite) == np.inf


def test_parity_of_outputs():
    floats = TensorSpec(name="p", datatype="FP32", shape=(2,))
    whole = TensorSpec(name="n", datatype="INT64", shape=())
    bits = TensorSpec(name="b", datatype="BF16", shape=())
    a = np.ones((200, 2), np.float32)
    n = np.arange(200)
    assert parity.compare([floats, whole], [a, n], [a, n], "fp32") == (0.0, "")
    off = n.copy()
    off[:2] += 1
    assert parity.compare([whole], [off], [n], "fp16") == (pytest.approx(1.0), "")
    off[:3] += 1
    assert "1.5% of n is unequal" in parity.compare([whole], [off], [n], "fp16")[1]
    assert "2 outputs instead of 1" in parity.compare([floats], [a, n], [a], "fp32")[1]
    for precision, fits in (("fp32", False), ("tf32", True), ("fp16", True)):
        found, wrong = parity.compare([floats], [a * np.float32(1.004)], [a], precision)
        assert (wrong == "") is fits
        assert (found <= 1) is fits
    one = np.array([0x3F80], np.uint16)  # 1.0, and the next number above it
    assert parity.compare([bits], [one], [one], "fp32") == (0.0, "")
    assert "b differs by 0.0078" in parity.compare([bits], [one + np.uint16(1)], [one], "fp32")[1]
    assert set(parity.TOLERANCE) == set(families.PRECISIONS)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.floats(0.0, 0.5))
def test_parity_is_a_share_of_the_largest(values, share):
    truth = np.array(values)
    scale = np.abs(truth).max() or 1.0
    assert parity.difference(truth + share * scale, truth) == pytest.approx(share, abs=1e-6)


def test_rows_to_compare_on(toy):
    (rows,) = parity.rows_of(toy, toy.variants[0], 16)
    assert rows.shape == (16, 4)
    bare = msgspec.structs.replace(toy, evaluation=None)
    (made,) = parity.rows_of(bare, bare.variants[0], 4)
    assert made.shape == (8, 4)  # enough for the largest batch
    assert ((made >= 0) & (made < 1)).all()
    assert parity.batches_of(toy) == (1, 2, 4, 8)
    assert parity.batches_of(msgspec.structs.replace(toy, max_batch=1)) == (1,)


# --- the store --------------------------------------------------------------------------------------------------------


def recipes():
    text = st.text("abc019.", max_size=4)
    kinds = {str: text, int: st.integers(0, 64)}
    return st.fixed_dictionaries({f.name: kinds[f.type] for f in msgspec.structs.fields(Recipe)}).map(
        lambda values: Recipe(**values)
    )


@given(recipes(), recipes())
def test_keys_are_equal_only_for_equal_recipes(one, other):
    assert (one.key == other.key) == (one == other)


@given(recipes(), st.data())
def test_any_changed_component_changes_the_key(made, data):
    field = data.draw(st.sampled_from(msgspec.structs.fields(Recipe)))
    old = getattr(made, field.name)
    new = old + 1 if isinstance(old, int) else old + "x"
    assert msgspec.structs.replace(made, **{field.name: new}).key != made.key


def test_everything_an_engine_depends_on_is_in_its_recipe(toy, monkeypatch):
    full, half = toy.variant("full"), toy.variant("half")
    half16 = msgspec.structs.replace(full, precision="fp16")

    def made(family=toy, variant=full, target=SMALL):
        return recipe(family, variant, "tensorrt", 1, None, target)

    found = [
        made(),
        made(variant=half),
        made(variant=half16),
        made(family=msgspec.structs.replace(toy, max_batch=4)),
        made(target=msgspec.structs.replace(SMALL, gpu="NVIDIA A100-SXM4-80GB")),
        made(target=msgspec.structs.replace(SMALL, profile="2g.10gb")),
        made(target=msgspec.structs.replace(SMALL, driver="580.66")),
    ]
    for name in ("torch", "torch-tensorrt", "tensorrt-cu13-libs"):
        with monkeypatch.context() as patched:
            patched.setattr(artifacts, "package_version", lambda asked, name=name: "9.9" if asked == name else "1.0")
            found.append(made())
    assert len({item.key for item in found}) == len(found)
    # Which slice of the shape, which board of the kind and how many threads of the CPU do not matter.
    elsewhere = msgspec.structs.replace(SMALL, uuid="GPU-2", visible="MIG-2")
    assert recipe(toy, full, "tensorrt", 4, None, elsewhere) == made()
    assert made().machine == ""


@pytest.mark.slow
def test_engines_of_one_profile_are_never_taken_for_another(toy, on_cpu, tmp_path):
    variant = toy.variant("full")
    on_whole = backends.artifact_dir(tmp_path, toy, variant, "tensorrt", 1, target=WHOLE)
    on_small = backends.artifact_dir(tmp_path, toy, variant, "tensorrt", 1, target=SMALL)
    assert on_whole.parent != on_small.parent
    assert on_whole.name != on_small.name
    # A copied folder does not help: the engine knows what it was built on.
    on_cpu.here["multiprocessors"] = 98
    shutil.copytree(build(toy, variant, tmp_path, WHOLE), on_small)
    on_cpu.here["multiprocessors"] = 14
    with pytest.raises(
        WorkerError, match="full is not for this worker: it was built for multiprocessors 98, here it is 14"
    ):
        tensorrt.TensorRtBackend().load(toy, variant, on_small, 1, "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("field", ["device", "multiprocessors", "torch", "torch_tensorrt", "tensorrt"])
def test_an_engine_is_at_home_where_it_was_built_only(toy, on_cpu, tmp_path, field):
    folder = build(toy, toy.variant("full"), tmp_path)
    record = record_of(folder)
    assert tensorrt.unfit(record, on_cpu.here) == ""
    other = {**on_cpu.here, field: 1 if field == "multiprocessors" else "other"}
    assert field.replace("_", "-") in tensorrt.unfit(record, other)


def test_folders_have_names_that_are_safe(toy, tmp_path):
    odd = targets.Target(gpu="../Odd GPU/№1", profile="1g.5gb+me", driver="1.2")
    folder = backends.artifact_dir(tmp_path, toy, toy.variants[0], "aoti", 1, target=odd)
    assert folder.relative_to(tmp_path).parts[:4] == ("artifacts", "aoti", "odd-gpu-1", "1g.5gb+me")
    assert targets.Target(gpu="...", profile="gpu").folder == Path("unnamed/gpu")


def test_one_build_at_a_time_on_a_gpu(toy, tmp_path):
    running, most = [], []

    class Slow:
        def compile(self, family, variant, folder, threads, target):
            running.append(target.uuid)
            most.append(running.count(target.uuid))
            time.sleep(0.05)
            running.remove(target.uuid)

    def start(name, variant, target):
        folder = backends.artifact_dir(tmp_path, toy, variant, name, 1, target=target)
        order = CompileOrder(
            family=toy, variant=variant.name, backend=name, folder=str(folder), threads=1, target=target
        )
        thread = threading.Thread(target=artifacts.build, args=(Slow(), order))
        thread.start()
        return thread

    threads = [start("tensorrt", variant, target) for variant in toy.variants for target in (SMALL, WHOLE)]
    threads += [start("aoti", toy.variants[0], WHOLE)]
    for thread in threads:
        thread.join()
    assert most == [1] * 5
    assert sorted(path.name for path in (tmp_path / "artifacts").glob("*.lock")) == ["GPU-1.lock"]
    elsewhere = artifacts.gpu_lock(tmp_path / "artifacts" / "x", msgspec.structs.replace(SMALL, uuid="GPU-2"))
    assert elsewhere != artifacts.gpu_lock(tmp_path / "artifacts" / "x", SMALL)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_targets_of_devices(tmp_path, monkeypatch):
    class Gpu:
        product, uuid, emulated, driver = "NVIDIA H100", "GPU-9", False, "580.1"

    class Emulated(Gpu):
        emulated = True

    assert targets.target_of(object(), "2c") == targets.CPU
    assert targets.target_of(Emulated(), "1g.10gb") == targets.CPU
    assert not targets.CPU.cuda
    made = targets.target_of(Gpu(), "1g.10gb", "MIG-3")
    assert (made.cuda, made.driver, made.visible, made.uuid) == (True, "580.1", "MIG-3", "GPU-9")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert targets.driver_version(tmp_path) == ""
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  12.2"
    (tmp_path / "proc/driver/nvidia/version").write_text(line)
    assert targets.driver_version(tmp_path) == "550.54.15"
    sandbox = tmp_path / "sandbox"
    assert targets.driver_version(sandbox) == ""
    (sandbox / "dev").mkdir(parents=True)
    (sandbox / "dev/nvidiactl").touch()
    monkeypatch.setattr("pynvml.nvmlInit", lambda: None)
    monkeypatch.setattr("pynvml.nvmlShutdown", lambda: None)
    monkeypatch.setattr("pynvml.nvmlSystemGetDriverVersion", lambda: "575.51.03")
    assert targets.driver_version(sandbox) == "575.51.03"  # where the driver shows no files
    monkeypatch.setattr(targets, "driver_version", lambda: "570.1")
    monkeypatch.delattr(Gpu, "driver")
    assert targets.target_of(Gpu(), "gpu").driver == "570.1"


def test_a_compiling_process_sees_its_slice_alone(toy, tmp_path, monkeypatch):
    from clover.worker import compiler as process

    seen = []
    order = CompileOrder(
        family=toy, variant="full", backend="eager", folder=str(tmp_path / "x"), threads=1, target=SMALL
    )
    read, write = os.pipe()
    os.write(write, msgspec.json.encode(order) + b"\n")
    take = os.read
    monkeypatch.setattr(os, "read", lambda fd, most: take(fd if fd else read, most))
    monkeypatch.setattr(process.orphans, "adopt", lambda: None)
    monkeypatch.setattr(process, "_watch", lambda: None)
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(os, "dup", lambda fd: fd)
    monkeypatch.setattr(os, "dup2", lambda fd, other: other)
    monkeypatch.setattr(process, "build", lambda backend, order: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert process.main() == 0
    os.close(write)
    os.close(read)
    assert seen == ["MIG-1"]


# --- words ------------------------------------------------------------------------------------------------------------


def installed(monkeypatch, **versions):
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    for module in (tensorrt, artifacts):
        monkeypatch.setattr(module, "package_version", lambda name: found.get(name, ""))
    monkeypatch.setattr(tensorrt, "driver_version", lambda: "580.65")


def test_what_is_missing_is_said(monkeypatch):
    backend = backends.get("tensorrt")
    cases = [
        ({}, "torch is not installed"),
        ({"torch": "2.13.0"}, r"torch-tensorrt is not installed: install clover-inference\[tensorrt\]"),
        (
            {"torch": "2.13.0+cu130", "torch_tensorrt": "2.12.1"},
            r"torch-tensorrt 2.12.1 needs torch 2.12, and torch 2.13.0\+cu130 is installed: install both at once",
        ),
        ({"torch": "2.11.0", "torch_tensorrt": "2.11.0"}, "2.11.0 is too old: 2.12 or newer"),
        ({"torch": "2.13.0+cpu", "torch_tensorrt": "2.13.0"}, r"2.13.0\+cpu is a build without CUDA"),
        ({"torch": "2.13.0", "torch_tensorrt": "2.13.0"}, "libraries of TensorRT are not installed"),
    ]
    for versions, message in cases:
        with monkeypatch.context() as patched:
            installed(patched, **versions)
            assert re.search(message, backend.available()), backend.available()
    installed(monkeypatch, torch="2.13.0", torch_tensorrt="2.13.0", tensorrt_cu13_libs="11.0.0")
    assert backend.available() == ""
    monkeypatch.setattr(tensorrt, "driver_version", lambda: "")
    assert backend.available() == "no NVIDIA driver is loaded on this machine"


def test_what_it_cannot_take(toy):
    backend = backends.get("tensorrt")
    simple = families.load_family(str(FAMILIES / "simple"))
    assert "not on CPU cores" in backend.supports(toy, toy.variants[0])
    assert backend.supports(toy, toy.variants[0], SMALL) == ""
    assert "plain Python" in backend.supports(simple, simple.variants[0], SMALL)
    small = TensorSpec(name="x", datatype="UINT8", shape=(4,))
    assert backend.supports(msgspec.structs.replace(toy, inputs=(small,)), toy.variants[0], SMALL) == ""
    assert "x is UINT8" in backend.supports(msgspec.structs.replace(toy, outputs=(small,)), toy.variants[0], SMALL)
    for datatype in ("FP64", "BYTES"):
        tensor = TensorSpec(name="x", datatype=datatype, shape=(4,), max_bytes=99 if datatype == "BYTES" else 0)
        assert f"x is {datatype}" in backend.supports(
            msgspec.structs.replace(toy, inputs=(tensor,)), toy.variants[0], SMALL
        )


def test_workers_and_folders_that_do_not_fit(toy, tmp_path, monkeypatch):
    backend, variant = backends.get("tensorrt"), toy.variants[0]
    with pytest.raises(WorkerError, match="this worker has no GPU"):
        backend.load(toy, variant, tmp_path, 1)
    with pytest.raises(WorkerError, match="half is not compiled for tensorrt on this slice: run `python -m"):
        backend.load(toy, variant, tmp_path, 1, "cuda")
    (tmp_path / tensorrt.ENGINE).write_text("{}")
    with pytest.raises(WorkerError, match=r"is damaged .*: delete it"):
        backend.load(toy, variant, tmp_path, 1, "cuda")
    with pytest.raises(ConfigError, match="slices of a GPU only"):
        backends.artifact_dir(tmp_path, toy, variant, "tensorrt", 1)
    nameless = msgspec.structs.replace(SMALL, driver="")
    with pytest.raises(DeviceError, match="driver's version cannot be read"):
        backends.artifact_dir(tmp_path, toy, variant, "aoti", 1, target=nameless)
    backends.artifact_dir(tmp_path, toy, variant, "eager", 1, target=nameless)  # nothing is compiled
    with pytest.raises(ProfileError, match="cannot be compiled with tensorrt: it runs on the slices of a GPU"):
        backend.compile(toy, variant, tmp_path, 1)


@pytest.mark.skipif(bool(artifacts.package_version("torch-tensorrt")), reason="torch-tensorrt is installed")
def test_the_extra_that_is_missing_is_named(toy, tmp_path):
    backend = backends.get("tensorrt")
    assert "clover-inference[tensorrt]" in backend.available()
    with pytest.raises(ProfileError, match=r"full with tensorrt for 1g.5gb failed: .*clover-inference\[tensorrt\]"):
        asyncio.run(backends.compile_in_background(toy, toy.variant("full"), "tensorrt", tmp_path / "x", target=SMALL))
    for failure in (ProfileError, WorkerError):
        with pytest.raises(failure, match=r"cannot be imported .*install clover-inference\[tensorrt\]"):
            tensorrt._library(failure)


# --- what torch and the extra offer -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_takes_what_is_asked_of_it(toy, tmp_path):
    """The calls into torch, for real: export with a dynamic batch, save, load, a module without guards."""
    for precision in families.PRECISIONS:
        variant = msgspec.structs.replace(toy.variant("full"), precision=precision)
        program, arguments, shapes = tensorrt._exported(toy, variant, "cpu")
        assert arguments[0].dtype == (torch.float16 if precision == "fp16" else torch.float32)
        assert shapes[0][0].__name__ == "batch"
        torch.export.save(program, str(tmp_path / "p"), pickle_protocol=2, extra_files=None)
        module = torch.export.load(str(tmp_path / "p"), extra_files=None).module(check_guards=False)
        assert [name for name, _ in module.named_children() if "guard" in name] == []
        for rows in (1, 5, 8):
            assert module(torch.zeros(rows, 4, dtype=arguments[0].dtype)).shape[0] == rows
    assert {"dynamic_shapes", "strict"} <= set(inspect.signature(torch.export.export).parameters)
    assert {"min", "max"} <= set(inspect.signature(torch.export.Dim.__init__).parameters)


def test_the_extra_asks_for_versions_that_fit():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["tensorrt"]
    least = ".".join(map(str, tensorrt.OLDEST))
    assert wanted == f"torch-tensorrt>={least}"
    for version, needs in facts.NEEDS.items():
        assert tensorrt.minor(version) >= tensorrt.OLDEST
        assert needs["torch"].startswith(f">={'.'.join(map(str, tensorrt.minor(version)))}.")
    assert tensorrt.minor("2.13.0+cu130") == (2, 13)


def test_nothing_of_it_is_imported_by_the_server():
    code = (
        "import sys, clover.backends as b; b.get('tensorrt').available(); "
        "print({'torch', 'torch_tensorrt'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=backends.child_environment()
    )
    assert found.stdout.strip() == "set()"
