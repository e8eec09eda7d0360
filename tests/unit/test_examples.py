"""What the documents show can be read by what it is for, and what can be run here runs."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clover import families
from clover.policies import build
from clover.settings import SETTINGS
from clover.types import Plan
from tests.support.fenced import ROOT, files_of, found
from tests.support.profiles_fixture import state
from tests.support.triton_models import loaded

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("models/*/README.md"))]
_FLAG = re.compile(r"(?<=\s)--[a-z][a-z0-9-]+")


EXAMPLES = list(found(*PAGES))


def of(name: str, language: str) -> list[str]:
    """Texts of a page's examples in one language."""
    return [example.text for example in found(ROOT / name) if example.language == language]


def test_examples_are_found() -> None:
    assert {"python", "toml", "json", "console"} <= {example.language for example in EXAMPLES}
    assert len(EXAMPLES) > 90


def test_python_is_python_and_imports_what_there_is() -> None:
    for example in EXAMPLES:
        if example.language != "python":
            continue
        tree = compile(example.text, str(example), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clover":
                source = ROOT.joinpath(*(node.module or "").split("."))
                file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
                for name in node.names:
                    assert re.search(rf"\b{name.name}\b", file.read_text(encoding="utf-8")), f"{example}: {name.name}"


def test_toml_and_json_are_well_formed() -> None:
    for example in EXAMPLES:
        try:
            if example.language == "toml":
                tomllib.loads(example.text)
            if example.language == "json" and "..." not in example.text:
                json.loads(example.text)
        except ValueError as error:
            pytest.fail(f"{example}: {error}")


def test_flags_of_commands_exist() -> None:
    """Of every line that starts Clover: a setting's flag, or one that a command or a bench declares."""
    declared = {f"--no-{setting.flag[2:]}" for setting in SETTINGS if setting.boolean}
    declared |= {setting.flag for setting in SETTINGS}
    for path in (*ROOT.glob("clover/**/*.py"), *ROOT.glob("bench/**/*.py")):
        declared |= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", path.read_text(encoding="utf-8")))
    unknown = [
        (str(example), flag)
        for example in EXAMPLES
        if example.language == "console"
        for line in example.text.replace("\\\n", " ").splitlines()
        if re.search(r"^\$ (.*&& )?(python -m clover|clover [a-z])", line)
        for flag in _FLAG.findall(re.split(r" -- | # | \| ", line)[0])
        if flag not in declared
    ]
    assert not unknown


def write_family(folder: Path, texts: dict[str, str]) -> Any:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return families.load_family(str(folder))


def run(text: str) -> dict[str, Any]:
    """Run an example as a module; return its names."""
    names: dict[str, Any] = {}
    exec(text, names)
    return names


@pytest.mark.slow  # imports torch
def test_the_family_of_the_readme_loads(tmp_path: Path) -> None:
    (toml,) = of("README.md", "toml")
    (model,) = (text for text in of("README.md", "python") if "my-family/model.py" in text)
    spec = write_family(tmp_path / "my-family", {"family.toml": toml, "model.py": model})
    assert [variant.name for variant in spec.variants] == ["small", "large"]
    names = run(model)
    for variant in spec.variants:
        assert names["load"](variant, tmp_path)(names["torch"].zeros(3, 2)).shape == (3, 4)


@pytest.mark.slow  # imports torch
def test_the_family_in_twenty_lines_is_as_right_as_it_says(tmp_path: Path) -> None:
    texts = files_of(ROOT / "docs" / "families.md")
    assert set(texts) == {"family.toml", "model.py", "data.py"}
    spec = write_family(tmp_path / "compass", texts)
    (points,), labels = families.load_evaluation(spec, "held_out")
    names = run(texts["model.py"])
    torch = names["torch"]
    right = {}
    for variant in spec.variants:
        with torch.inference_mode():
            answers = names["load"](variant, tmp_path)(torch.from_numpy(points)).numpy()
        right[variant.name] = float((answers.argmax(axis=1) == labels).mean())
    assert right["exact"] == 1.0
    assert 0.6 < right["rough"] < 0.95


@pytest.mark.slow  # imports torch
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_classifier_of_the_page_on_moving_answers_from_its_family_and_from_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other frameworks' examples answer, `python -m tests.moving` finds out."""
    import torch
    from safetensors.torch import save_model

    from clover.__main__ import main

    page = "docs/bring-your-own.md"
    files = files_of(ROOT / page)
    assert set(files) == {"net.py", "config.pbtxt", "lit.py", "service.py", "handler.py"}
    torch.manual_seed(1)
    (tmp_path / "net.py").write_text(files["net.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    net = importlib.import_module("net").Net().eval()
    picture = torch.rand(2, 1, 28, 28)
    truth = net(picture).detach().numpy()

    (toml,) = of(page, "toml")
    (model,) = (text for text in of(page, "python") if "def load(" in text)
    folder = tmp_path / "net"
    (folder / "weights").mkdir(parents=True)
    save_model(net, str(folder / "weights" / "net.safetensors"))
    spec = write_family(folder, {"family.toml": toml, "model.py": model, "net.py": files["net.py"]})
    module = families.resolve(spec.variants[0].loader, folder)(spec.variants[0], folder)
    np.testing.assert_array_equal(module(picture).detach().numpy(), truth)

    version = tmp_path / "repository" / "net" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(files["config.pbtxt"], encoding="utf-8")
    torch.jit.script(net).save(str(version / "model.pt"))
    into = tmp_path / "families"
    assert main(["family", "import", str(tmp_path / "repository"), "--into", str(into)]) == 0
    np.testing.assert_array_equal(loaded(into / "net")([picture.numpy()])[0], truth)


def test_the_family_of_the_tutorial_is_one(tmp_path: Path) -> None:
    (toml, *_) = of("docs/tutorial.md", "toml")
    model, data, *_ = of("docs/tutorial.md", "python")
    folder = tmp_path / "digits"
    folder.mkdir()
    for name in ("small", "large"):
        (folder / f"{name}.safetensors").touch()
    for name, text in {"family.toml": toml, "model.py": model, "data.py": data}.items():
        (folder / name).write_text(text, encoding="utf-8")
    images = np.zeros((10, 1, 8, 8), np.float32)
    np.savez(folder / "test.npz", images=images, labels=np.arange(10))
    spec = families.load_family(str(folder))
    _, labels = families.load_evaluation(spec, "held_out")
    assert labels.tolist() == [1, 3, 5, 7, 9]


def test_the_policy_of_the_documents_keeps_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text, *_) = of("docs/policies.md", "python")
    (tmp_path / "cap_policy.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cap_policy", raising=False)
    policy = build("cap_policy:cap")
    plan = policy.propose(state())
    assert plan.policy == "cap:0.8ug"
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    capped: Any = type(policy)
    cheapest, dearest = capped(0.0), capped(1e12)
    low, high = cheapest.propose(state()).prediction, dearest.propose(state()).prediction
    assert low.energy_j_per_row < high.energy_j_per_row
    assert low.accuracy < high.accuracy


@pytest.mark.parametrize("number", range(2))
def test_functions_of_the_page_on_families_score_rows(number: int) -> None:
    score, confidence = (
        text for text in of("docs/families.md", "python") if "def within" in text or "def span" in text
    )
    names: dict[str, Any] = {}
    exec(score, names)
    exec(confidence, names)
    if number == 0:
        hertz = np.array([[440.0], [880.0]])
        assert names["within_50_cents"]({"hertz": hertz}, np.array([441.0, 440.0])).tolist() == [True, False]
    else:
        sure = names["span"](np.array([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
        assert sure[0] > 0.99
        assert sure[1] == pytest.approx(0.25)
