"""`clover family new`: from torch modules, ONNX files and Triton models to folders that load, and what is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clover import families
from clover.__main__ import main
from clover.backends import child_environment
from clover.importing import folder, torch_source
from clover.importing.cli.new_family import tensor_of
from clover.importing.draft import DraftError
from clover.types import FamilySpec, TensorSpec
from tests.support.family_folder import model_of
from tests.support.forks import Forks
from tests.support.triton_models import WEIGHT, affine, branching, write_repository

NETS = """\
import torch
from torch import nn


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16, 3))

    def forward(self, x):
        return self.body(x)


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, features):
        found = self.layer(features)
        return {"scores": found.softmax(1), "raw": found}


def no_module():
    return 3


class Reduces(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)

    def forward(self, x):
        return super().forward(x).mean()
"""


PROBE = """\
import os, sys
os.chdir({folder!r})
sys.path[0] = {folder!r}
from clover.importing.probe import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def probes() -> Iterator[Forks]:
    found = Forks("torch", "clover.importing.probe", environ={**os.environ, **child_environment()})
    yield found
    found.close()


@pytest.fixture(autouse=True)
def forked_probes(probes: Forks, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Fork the process that builds modules from one that has torch, unless a test uses `own_probe`."""

    def run(command: list[str], *, input: bytes, env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert command == [sys.executable, "-m", "clover.importing.probe"]
        done = probes.run(PROBE.format(folder=os.getcwd()), command, env, input)
        sys.stderr.write(done.stderr)
        return SimpleNamespace(stdout=done.stdout.encode(), returncode=done.returncode)

    if "own_probe" not in request.fixturenames:
        monkeypatch.setattr(
            torch_source, "subprocess", SimpleNamespace(run=run, PIPE=-1, TimeoutExpired=subprocess.TimeoutExpired)
        )


@pytest.fixture
def own_probe() -> None:
    """The process that builds modules is started as for users."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def made(*argv: str) -> FamilySpec:
    assert main(["family", "new", *argv, "--no-profile"]) == 0
    return families.load_family(argv[0])


@pytest.mark.slow
@pytest.mark.usefixtures("own_probe")
def test_two_modules_of_a_file_are_a_family_that_answers_as_they_do(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    rows = ["file,label", *(f"{index}.npy,{'abc'[index % 3]}" for index in range(12))]
    (here / "rows.csv").write_text("\n".join(rows))
    for index in range(12):
        np.save(here / f"{index}.npy", np.full((1, 4, 4), index, np.float32))
    (here / "weights.pt").write_bytes(b"")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    torch.save(net.state_dict(), here / "weights.pt")
    spec = made(
        "shapes", "--from", "nets:small", "--weights", "weights.pt", "--from", "nets:Large",
        "--input", "image:FP32:1,4,4", "--evaluate", "rows.csv",
    )  # fmt: skip
    assert [variant.name for variant in spec.variants] == ["small", "large"]
    assert spec.outputs[0].labels == ("a", "b", "c")
    assert spec.confidence is not None
    assert spec.confidence.logits
    given = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(model_of(spec, "small")(given), net(given))
    assert model_of(spec, "large")(given).shape == (5, 3)
    assert (here / "7.npy").samefile(here / "shapes" / "rows" / "7.npy"), "rows take no room twice"
    for index in range(12):
        (here / f"{index}.npy").unlink()  # the process that reads rows may read nothing outside of the family
    splits = [families.load_evaluation(spec, split) for split in families.SPLITS]
    seen = sorted(
        (int(row[0, 0, 0]), int(label)) for (rows_,), labels in splits for row, label in zip(rows_, labels, strict=True)
    )
    assert seen == [(index, index % 3) for index in range(12)]
    assert [len(labels) for _, labels in splits] == [6, 6]
    assert "a is 0, c is 2" in capsys.readouterr().out


def test_rows_on_another_file_system_are_copied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("clover.importing.folder.os.link", elsewhere)
    (here / "row.npy").write_bytes(b"1")
    folder.link_or_copy(here / "row.npy", here / "copy.npy")
    assert (here / "copy.npy").read_bytes() == b"1"
    assert not (here / "copy.npy").samefile(here / "row.npy")


def test_a_module_of_random_weights_is_untrained_everywhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"1.weight": torch.zeros(3, 16), "1.bias": torch.ones(3)}, here / "small.pt")
    (here / "nets.py").write_text(
        f"{NETS}\n\ndef trained():\n    found = small()\n"
        '    found.load_state_dict(torch.load("small.pt", weights_only=True))\n    return found\n'
    )
    spec = made("shapes", "--from", "nets:trained", "--from", "nets:Large", "--input", "image:FP32:1,4,4")
    assert {one.name: one.untrained for one in spec.variants} == {"trained": False, "large": True}
    assert "nets:Large is UNTRAINED, its answers mean nothing" in " ".join(capsys.readouterr().out.split())
    readme = (here / "shapes" / "README.md").read_text()
    assert "| `large` | 235 parameters, built by nets:Large; UNTRAINED: random weights |" in readme
    assert "# 235 parameters, built by nets:Large; UNTRAINED" in (here / "shapes" / "family.toml").read_text()
    caution = families.published.caution(spec)
    assert caution.startswith("large of shapes: UNTRAINED, built with random weights. Their answers mean nothing; put ")
    spec = made("given", "--from", "nets:small", "--weights", "small.pt")
    assert not spec.variants[0].untrained
    assert families.published.caution(spec) == ""


def test_inputs_are_proposed_and_mappings_put_in_order(here: Path) -> None:
    import torch

    spec = made("told", "--from", "nets:Told")
    assert [(one.name, one.datatype, one.shape) for one in spec.inputs] == [("features", "FP32", (4,))]
    assert [(one.name, one.shape) for one in spec.outputs] == [("scores", (2,)), ("raw", (2,))]
    assert spec.confidence is not None
    assert not spec.confidence.logits
    scores, raw = model_of(spec)(torch.randn(3, 4))
    torch.testing.assert_close(scores, raw.softmax(1))
    assert spec.evaluation is not None
    assert spec.evaluation.metric == "agreement"
    (rows,), _ = families.load_evaluation(spec, "held_out")
    assert rows.shape == (512, 4)


@pytest.mark.parametrize("beside", [False, True], ids=["weights inside", "weights beside, as torch >= 2.9 exports"])
def test_an_onnx_file_gets_a_variant_in_eight_bits(here: Path, beside: bool) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    model = onnx.load_from_string(affine(width=256))
    onnx.save(model, "affine.onnx", save_as_external_data=beside, location="affine.onnx.data", size_threshold=0)
    assert Path("affine.onnx.data").exists() is beside
    (here / "texts.csv").write_text(
        ",".join(f"f{index}" for index in range(256)) + ",label\n"
        + "".join(",".join([str(index / 9)] * 256) + f",{index % 2}\n" for index in range(80))
    )  # fmt: skip
    spec = made("affine", "--from", "affine.onnx", "--evaluate", "texts.csv")
    assert [variant.name for variant in spec.variants] == ["affine-int8", "affine"]
    rows = np.random.default_rng(0).random((5, 256), np.float32)
    exact, rough = (model_of(spec, name)([rows])[0] for name in ("affine", "affine-int8"))
    np.testing.assert_allclose(rough, exact, atol=0.05 * abs(exact).max())
    assert not np.array_equal(rough, exact)


def test_weights_of_one_name_that_lie_beside_two_onnx_files_stay_apart(here: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    for name, factor in (("small", 1.0), ("large", 4.0)):
        os.mkdir(name)
        model = onnx.load_from_string(branching(factor))
        onnx.save(model, f"{name}/{name}.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    small, large = Path("small/w.bin"), Path("large/w.bin")
    large.write_bytes((np.frombuffer(small.read_bytes(), np.float32) * 5).tobytes())
    spec = made("both", "--from", "small/small.onnx", "--from", "large/large.onnx", "--variants", "2")
    assert sorted(one.weights for one in spec.variants) == ["weights/large/large.onnx", "weights/small/small.onnx"]
    rows = np.random.default_rng(0).random((5, 3), np.float32)
    found = {name: model_of(spec, name)([rows])[0] for name in ("small", "large")}
    np.testing.assert_allclose(found["small"], rows @ WEIGHT, rtol=1e-5)
    np.testing.assert_allclose(found["large"], 20 * rows @ WEIGHT, rtol=1e-5)


def test_a_model_of_a_triton_repository_is_a_family(here: Path) -> None:
    write_repository(here / "repository")
    spec = made("mine", "--from", "repository/shout")
    assert (spec.name, spec.inputs[0].datatype) == ("mine", "BYTES")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["new", "--from", "nets:none"], "module nets has no none"),
        (["new", "--from", "nets:no_module"], "gives a int, and not an nn.Module"),
        (["new", "--from", "nets:Reduces"], "outputs are tensors that begin with the batch axis"),
        (["new", "--from", "nets"], "is not module:Class"),
        (["new", "--from", "nowhere:Net"], "No module named 'nowhere'"),
        (["new", "--from", "nets:small", "--from", "nets:Told"], "nets:small: FP32 [4]: mat1 and mat2 shapes"),
        (["new", "--from", "nets:small", "--weights", "none.pt"], "there is no file none.pt"),
        (["new", "--from", "none.onnx"], "there is no file none.onnx"),
        (["new", "--from", "nets.onnx"], "is no ONNX model"),
        (["new", "--from", "nets:small", "--from", "nets.onnx"], "variants of one kind"),
        (["new", "--from", "nets:small", "--evaluate", "none"], "there is no none"),
        (["new", "--from", "nets:small", "--evaluate", "few.csv"], "at least 8 are needed"),
        (["new", "--from", "nets:small", "--variants", "99"], "--variants is 1 to 8"),
        (["there", "--from", "nets:small"], "nothing is overwritten"),
        (["a/b", "--from", "nets:small"], "is no folder: make it first"),
        (["new", "--name", "a b", "--from", "nets:small"], "is no name of a family"),
    ],
)
def test_errors_say_what_to_do_and_leave_nothing(
    argv: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "there").mkdir()
    (here / "nets.onnx").write_text("no model")
    (here / "few.csv").write_text("a,label\n1,0\n")
    before = sorted(path.name for path in here.iterdir())
    assert main(["family", "new", *argv, "--no-profile"]) == 3
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before


def test_command_lines_are_refused() -> None:
    assert main(["family", "new", "x"]) == 2
    assert main(["family", "new", "x", "--form", "y"]) == 2


def test_tensors_are_read() -> None:
    assert tensor_of("ids:INT64:-1..512") == TensorSpec(name="ids", datatype="INT64", shape=(-1,), max_shape=(512,))
    assert tensor_of("x:FP32:3,224,224").shape == (3, 224, 224)
    for text in ("x", "x:FP33:3", "x:FP32:0", "x:FP32:-1", "a b:FP32:3"):
        with pytest.raises(DraftError, match="--input"):
            tensor_of(text)


def test_the_profile_is_taken_at_the_end_if_it_is_wanted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clover.cli import profile

    asked: list[Any] = []

    def measured(argv: list[str]) -> int:
        asked.append(argv)
        return 0

    monkeypatch.setattr(profile, "main", measured)
    assert main(["family", "new", "told", "--from", "nets:Told", "--device", "cpu"]) == 0
    assert asked == [[str(here / "told"), "--quick", "--device", "cpu"]]
