from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clover import backends, families
from clover.backends import artifacts
from clover.backends.environment import child_environment
from clover.errors import ConfigError, ProfileError, WorkerError
from clover.types import TensorSpec

FAMILIES = Path(__file__).parents[2] / "families"


@pytest.fixture(scope="module")
def toy():
    return families.load_family(str(FAMILIES / "toy"))


def fake_backend(write):
    class Fake:
        name = "fake"
        compiles = True

        def available(self):
            return ""

        def supports(self, family, variant):
            return ""

        def compile(self, family, variant, folder, threads, target):
            write(folder)

        def load(self, family, variant, folder, threads):
            raise NotImplementedError

    return Fake()


def order(toy, folder):
    return artifacts.CompileOrder(family=toy, variant="half", backend="fake", folder=str(folder), threads=1)


def test_importing_backends_never_imports_torch():
    code = "import sys, clover.backends as b; assert b.get('aoti').name == 'aoti'; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=child_environment())


def test_unknown_backends_are_named():
    assert backends.names() == (
        "eager",
        "eager-tf32",
        "eager-fp16",
        "eager-bf16",
        "aoti",
        "onnxruntime",
        "onnxruntime-int8",
        "openvino",
        "openvino-bf16",
        "openvino-int8",
        "tensorrt",
    )
    with pytest.raises(ConfigError, match="one of eager, eager-tf32, eager-fp16, eager-bf16, aoti"):
        backends.get("tensorflow")


def test_the_folder_says_what_invalidates_it(toy, tmp_path):
    half, full = toy.variants

    def key(family=toy, variant=half, backend="aoti", threads=1, version="1"):
        return backends.artifact_dir(tmp_path, family, variant, backend, threads, version)

    larger = msgspec.structs.replace(toy, max_batch=16)
    other = msgspec.structs.replace(half, parameters={"seen": 1, "layers": 1})
    found = {
        key(),
        key(variant=full),
        key(backend="onnxruntime"),
        key(threads=2),
        key(version="2"),
        key(family=larger),
        key(variant=other),
    }
    assert len(found) == 7
    assert key() == key()
    assert all(tmp_path in folder.parents for folder in found)


def test_artifacts_are_whole_or_not_there(toy, tmp_path):
    folder = tmp_path / "a" / "x"

    def half_way(place):
        (place / "part").write_text("x")
        raise ProfileError("no")

    with pytest.raises(ProfileError):
        artifacts.build(fake_backend(half_way), order(toy, folder))
    assert not backends.is_compiled(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["x.lock"]
    (folder.parent / "x.tmp-left").mkdir()
    artifacts.build(fake_backend(lambda place: (place / "model").write_text("y")), order(toy, folder))
    assert backends.is_compiled(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["x", "x.lock"]


def test_two_builders_compile_once(toy, tmp_path):
    times = []

    def write(place):
        times.append(place)
        time.sleep(0.05)

    asked = (fake_backend(write), order(toy, tmp_path / "x"))
    builders = [threading.Thread(target=artifacts.build, args=asked) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(times) == 1


@pytest.mark.slow
def test_eager_runs_torch_and_python(toy):
    inputs, labels = families.load_evaluation(toy, "held_out")
    eager = backends.get("eager")
    run = eager.load(toy, toy.variant("full"), Path(), 1)
    (answer,) = run(inputs)
    assert answer.dtype == np.float32
    assert (answer.argmax(axis=1) == labels).mean() > 0.8
    simple = families.load_family(str(FAMILIES / "simple"))
    added, subtracted = eager.load(simple, simple.variants[0], Path(), 1)([np.full((2, 16), 3), np.full((2, 16), 1)])
    assert (added == 4).all()
    assert (subtracted == 2).all()


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.deep = torch.nn.Conv3d(1, 1, 1)  # whose weights have no such order
        self.narrow, self.wide = torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.Conv2d(32, 4, 3, padding=1)
        self.last = torch.nn.Linear(4 * 28 * 28, 10)

    def forward(self, image):
        found = self.wide(self.narrow(image))
        if self.kind == "viewing":
            found = found.view(len(found), -1)
        elif self.kind == "mixing":  # of one row this is a view, whatever its order
            found = found.view(len(found) * 4, 1, 28 * 28)
        elif self.kind == "asserting":
            assert found.is_contiguous()
        return self.last(found.reshape(len(image), -1)).softmax(1)

def viewing(variant, folder):
    return Net("viewing")

def mixing(variant, folder):
    return Net("mixing")

def asserting(variant, folder):
    return Net("asserting")

def flattening(variant, folder):
    return Net("flattening")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loader", "order"),
    [
        ("flattening", "channels_last"),
        ("viewing", "contiguous_format"),
        ("mixing", "contiguous_format"),
        ("asserting", "contiguous_format"),
    ],
)
def test_wide_convolutions_are_channels_last_where_the_module_allows_it(loader, order, tmp_path, monkeypatch):
    import torch

    (tmp_path / "nets.py").write_text(MODULE)
    fashion = families.load_family("fashion")
    variant = msgspec.structs.replace(fashion.variants[0], loader=f"nets:{loader}")
    spec = msgspec.structs.replace(fashion, folder=str(tmp_path), variants=(variant,))
    module = families.resolve(variant.loader, tmp_path)(variant, tmp_path)
    rows = np.random.RandomState(1).random_sample((3, 1, 28, 28)).astype(np.float32)
    truth = module(torch.from_numpy(rows)).detach().numpy()
    monkeypatch.setattr("clover.backends.eager.load_module", lambda *_: module)
    run = backends.get("eager").load(spec, variant, Path(), 1)
    assert module.wide.weight.is_contiguous(memory_format=getattr(torch, order))
    np.testing.assert_allclose(run([rows])[0], truth, atol=1e-6)


def test_what_a_backend_cannot_take(toy):
    simple = families.load_family(str(FAMILIES / "simple"))
    for name in ("aoti", "onnxruntime"):
        assert "plain Python" in backends.get(name).supports(simple, simple.variants[0])
        assert backends.get(name).supports(toy, toy.variants[0]) == ""
    half = msgspec.structs.replace(toy, inputs=(TensorSpec(name="x", datatype="BF16", shape=(4,)),))
    assert "BF16" in backends.get("onnxruntime").supports(half, half.variants[0])
    assert backends.get("aoti").supports(half, half.variants[0]) == ""
    assert backends.get("eager").supports(simple, simple.variants[0]) == ""


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "compiler" in backends.get("aoti").available()
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "" if name == "onnx" else "1")
    assert backends.get("onnxruntime").available().startswith("missing onnx:")


def test_a_failed_compilation_gives_its_reason(tmp_path):
    simple = families.load_family(str(FAMILIES / "simple"))
    with pytest.raises(ProfileError, match="plain Python"):
        asyncio.run(backends.compile_in_background(simple, simple.variants[0], "aoti", tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("left", ["link", "pipe", "manifest"])
def test_an_artifact_is_of_files_and_folders_and_has_no_manifest_of_its_own(toy, tmp_path, left):
    secret = tmp_path / "secret"
    secret.write_text("as it was")

    class Hostile:
        def compile(self, family, variant, folder, threads, target):
            (folder / "more").mkdir()
            {
                "link": lambda: (folder / artifacts.MANIFEST).symlink_to(secret),
                "pipe": lambda: os.mkfifo(folder / "more" / "pipe"),
                "manifest": lambda: (folder / artifacts.MANIFEST).write_text("{}"),
            }[left]()

    place = tmp_path / "artifacts" / "x"
    order = artifacts.CompileOrder(family=toy, variant="full", backend="aoti", folder=str(place), threads=1)
    with pytest.raises(ProfileError, match=r"^the artifact has "):
        artifacts.build(Hostile(), order)
    assert secret.read_text() == "as it was"
    assert [path.name for path in place.parent.iterdir()] == ["x.lock"]


def test_a_compilation_ends_with_its_parent(toy, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "clover.worker.compiler"],
        stdin=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    asked = artifacts.CompileOrder(family=toy, variant="full", backend="aoti", folder=str(tmp_path / "x"), threads=1)
    process.stdin.write(msgspec.json.encode(asked) + b"\n")
    process.stdin.close()
    assert process.wait(20) == -signal.SIGKILL


def test_cancelling_ends_the_compilation(toy, tmp_path):
    async def main():
        task = asyncio.create_task(backends.compile_in_background(toy, toy.variant("full"), "aoti", tmp_path / "x"))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())  # what is made once stays, and what tests before left may go at any time
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(ProfileError, match="more than 0 s"):
        asyncio.run(backends.compile_in_background(toy, toy.variant("full"), "aoti", tmp_path / "x", budget=SPENT))


def test_a_compilation_is_charged_for_its_cpu_time_and_ended_if_it_exceeds_its_budget(toy, tmp_path, monkeypatch):
    def compile_within(budget):
        asked = backends.compile_in_background(toy, toy.variant("full"), "aoti", tmp_path / "x", budget=budget)
        asyncio.run(asked)

    seen = []

    def process_ns(pid):  # a second at every look
        seen.append(pid)
        return len(seen) * 1_000_000_000

    monkeypatch.setattr(artifacts, "process_ns", process_ns)
    monkeypatch.setattr(artifacts, "_children", lambda pid: [])
    budget = backends.CpuBudget(3.0)
    with pytest.raises(ProfileError, match="compiling full with aoti took more than 3 s of CPU time"):
        compile_within(budget)
    assert budget.used_s == 4.0
    assert budget.spent
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
    seen[:] = [0] * 10
    with pytest.raises(ProfileError):
        compile_within(budget)
    assert budget.used_s == 4.0 + 11.0, "of both together"


BURNS_IN_A_FORK = """
import os, signal, time
if not os.fork():
    while time.process_time() < 2.0:
        pass
    os._exit(0)
while os.read(0, 1 << 16):
    pass
os.killpg(0, signal.SIGKILL)
"""


def test_what_the_fork_of_a_compiling_process_uses_is_charged_too(toy, tmp_path, monkeypatch):
    """That is nearly all: the family's code and the backend run in it."""

    def start(compilation):
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BURNS_IN_A_FORK], stdin=subprocess.PIPE, start_new_session=True
        )

    monkeypatch.setattr(artifacts._Compilation, "_start", start)
    budget = backends.CpuBudget(0.2, clock_s=20.0)
    asked = backends.compile_in_background(toy, toy.variant("full"), "aoti", tmp_path / "x", budget=budget)
    with pytest.raises(ProfileError, match="more than 0 s of CPU time"):
        asyncio.run(asked)
    assert budget.spent


BYTE_NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x.to(self.first.weight.dtype) / 255)

def load(variant, folder):
    torch.manual_seed(1)
    return Net()
"""


@pytest.mark.slow
def test_bytes_are_normalised_by_the_module_in_every_backend_and_precision(toy, tmp_path):
    (tmp_path / "bytes_net.py").write_text(BYTE_NET)
    variant = msgspec.structs.replace(toy.variants[0], loader="bytes_net:load")
    inputs = (TensorSpec(name="x", datatype="UINT8", shape=(4,)),)
    spec = msgspec.structs.replace(
        toy, folder=str(tmp_path), variants=(variant,), inputs=inputs, evaluation=None, digest=""
    )
    rows = [np.random.default_rng(1).integers(0, 256, (8, 4), np.uint8)]
    eager = backends.get("eager")
    (truth,) = eager.load(spec, variant, Path(), 1)(rows)
    half = msgspec.structs.replace(variant, precision="fp16")
    np.testing.assert_allclose(eager.load(spec, half, Path(), 1)(rows)[0], truth, atol=0.01)
    ort = backends.get("onnxruntime")
    if not ort.available():
        ort.compile(spec, variant, tmp_path, 1)
        np.testing.assert_allclose(ort.load(spec, variant, tmp_path, 1)(rows)[0], truth, atol=1e-5)


@pytest.mark.slow
def test_onnxruntime_agrees_with_eager(toy, tmp_path):
    def build(family, variant, name, folder):  # in this process, which has torch: the compiling one is shown with aoti
        order = artifacts.CompileOrder(family=family, variant=variant.name, backend=name, folder=str(folder), threads=1)
        artifacts.build(backends.get(name), order)

    compiled_agrees(toy, "onnxruntime", tmp_path, build)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_aoti_agrees_with_eager(toy, tmp_path, monkeypatch):
    # Else torch compiles ten programs, here and in the child, to see which vectors compiler and CPU know.  What calls
    # the kernels is long, and computes nothing: it need not be optimised.
    torchs = {"TORCHINDUCTOR_VEC_ISA_OK": "1", "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0"}
    monkeypatch.setattr(artifacts, "child_environment", lambda: child_environment() | torchs)
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    folder = compiled_agrees(toy, "aoti", tmp_path, compiling)
    # The package, as a worker on a GPU loads it; it is for CPU cores, which such a worker refuses.
    variant = toy.variant("half")
    import torch

    package = folder / "model.pt2"
    model = torch._inductor.aoti_load_package(str(package), run_single_threaded=True).loader
    rows = torch.ones(3, 4)
    (answer,) = model.run([rows])
    truth = backends.get("eager").load(toy, variant, folder, 1)([rows.numpy()])[0]
    np.testing.assert_allclose(answer.numpy(), truth, atol=1e-6)
    with pytest.raises(WorkerError, match="is for CPU cores, not for the GPU"):
        backends.get("aoti").load(toy, variant, folder, 1, "cuda")


SPENT = artifacts.CpuBudget(math.inf, clock_s=0.0)


def compiling(*what):
    asyncio.run(backends.compile_in_background(*what))


def compiled_agrees(toy, name, cache, build):
    backend = backends.get(name)
    if backend.available():
        pytest.skip(backend.available())
    variant = toy.variant("half")
    folder = backends.artifact_dir(cache, toy, variant, name, 1)
    build(toy, variant, name, folder)
    assert backends.is_compiled(folder)
    asyncio.run(backends.compile_in_background(toy, variant, name, folder, budget=SPENT))  # there already
    run = backend.load(toy, variant, folder, 1)
    truth = backends.get("eager").load(toy, variant, folder, 1)
    rows = np.random.RandomState(1).standard_normal((8, 4)).astype(np.float32)
    for count in (1, 3, 8):
        np.testing.assert_allclose(run([rows[:count]])[0], truth([rows[:count]])[0], atol=1e-6)
    return folder


def test_children_get_no_secrets():
    of_the_gpu = {
        "CUDA_MPS_PIPE_DIRECTORY": "/run/mps",
        "CUDA_CACHE_PATH": "/cache",
        "NVIDIA_TF32_OVERRIDE": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64",
        "TRITON_CACHE_DIR": "/triton",
        "TORCH_HOME": "/torch",
        "HF_HOME": "/hf",
    }
    dropped = {"AWS_SECRET_ACCESS_KEY", "CLOVER_TOKEN", "PYTHONSTARTUP", "HF_TOKEN", "CUDA_VISIBLE_DEVICES"}
    dropped |= {"NVIDIA_API_KEY", "TRITON_TOKEN", "PYTORCH_HUB_SECRET", "CUDA_PASSWORD", "PYTHON_Credentials"}
    given = of_the_gpu | dict.fromkeys(dropped, "x")
    given |= {
        "PATH": "/bin",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "8",
        "LC_ALL": "C",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    found = child_environment(given)
    assert found["PATH"] == "/bin"
    assert found["PYTHONHASHSEED"] == "0"
    assert found["LC_ALL"] == "C"
    assert found["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "1"
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["ORT_DISABLE_TELEMETRY"] == "1"
    assert not dropped & set(found)
    assert of_the_gpu.items() <= found.items()
    assert all(os.path.isabs(entry) for entry in found["PYTHONPATH"].split(os.pathsep))
