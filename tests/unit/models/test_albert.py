"""ALBERT answers with a part of the text, as transformers does, and says what it lacks."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec.structs import replace

from clover import families, steps
from clover.errors import ConfigError
from clover.families import published
from clover.http.api.metadata import model_metadata
from clover.types import FamilySpec, VariantSpec
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)

QUESTION = "Who wrote the letter?"
CONTEXT = "The letter was written by Ada Lovelace, née Byron, in 1843; it lay in London for a hundred years."
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a torch home in which nothing was fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def small(spec: FamilySpec) -> VariantSpec:
    """Return a variant of few parameters."""
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = spec.variants[0]
    return replace(base, parameters={**base.parameters, **size})


def row(text: str) -> Any:
    made = np.empty((1, 1), object)
    made[0, 0] = text.encode()
    return made


def test_without_its_weights_it_says_untrained(bare_home: Path) -> None:
    spec = families.load_family("albert")
    names = ["base", "large", "xlarge", "xxlarge"]
    assert [variant.name for variant in spec.variants] == names
    assert model_metadata("albert", spec, ("1",))["parameters"]["untrained"] == names
    first = spec.variants[0].accuracy
    assert first is not None
    assert (first.value, first.source) == (0.0, "UNTRAINED: random weights (trained: 82.1 %)")
    assert families.load_family(spec) == spec


def test_the_vocabulary_is_what_its_module_writes(tmp_path: Path) -> None:
    folder = Path(families.load_family("albert").folder)
    main = families.resolve("tokens:main", folder)
    assert main(tmp_path / "tokenizer.json") == 0
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.slow
@needs_transformers
def test_it_answers_as_transformers_does(bare_home: Path) -> None:
    spec = families.load_family("albert")
    variant, folder = small(spec), Path(spec.folder)
    plan = steps.plan_for(spec, variant)
    assert plan is not None
    before = plan.worker_before.apply({"question": row(QUESTION), "context": row(CONTEXT)}, 1)
    assert not before.refused
    given = [torch.from_numpy(steps.stack_rows(before.columns[name])) for name in plan.taken]
    load = families.resolve(variant.loader, folder)
    model = load(variant, folder)
    transformers = importlib.import_module("transformers")
    with torch.inference_mode():
        start, end = model(*given)
        again = load(variant, folder)(*given)
    torch.testing.assert_close(again, (start, end), atol=0, rtol=0)  # random weights are the same in every worker
    after = plan.worker_after.apply({**before.columns, "start_logits": start.numpy(), "end_logits": end.numpy()}, 1)
    answer = after.columns["answer"][0][0].decode()
    assert answer
    assert answer in CONTEXT

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]"
    )
    theirs = tokenizer(QUESTION, CONTEXT, padding="max_length", max_length=384, truncation="only_second",
                       return_token_type_ids=True, return_tensors="pt")  # fmt: skip
    for one, name in zip(given, plan.taken, strict=True):
        assert torch.equal(one, theirs[name])
    with torch.inference_mode():
        found = model.network(**theirs)
    torch.testing.assert_close(start, found.start_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end, found.end_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@needs_transformers
def test_weights_that_were_fetched_and_pinned_are_loaded(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = families.load_family("albert")
    folder = Path(before.folder)
    trained = families.resolve("model:load", folder)(small(before), folder).network
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.125)
    weights, asked = io.BytesIO(), []
    torch.save({**trained.state_dict(), "albert.pooler.bias": torch.zeros(64)}, weights)  # as published ones have it

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO((folder / "tokenizer.json").read_bytes() if url.endswith(".json") else weights.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert published.fetch_of(before, ["base"]) == 3, "no commit was named"
    assert published.fetch_of(before, ["base@main"]) == 3
    assert published.fetch_of(before, ["bass"]) == 3
    assert asked == []
    assert published.fetch_of(before, [f"base@{COMMIT}"]) == 0
    assert asked[0] == f"https://huggingface.co/twmkn9/albert-base-v2-squad2/resolve/{COMMIT}/pytorch_model.bin"
    assert asked[1].endswith("/resolve/8e2f239c5f8a2c0f253781ca60135db913e5c80c/tokenizer.json")
    names = ["twmkn9--albert-base-v2-squad2--pytorch_model.bin", "albert--albert-base-v2--tokenizer.json"]
    assert sorted(path.name for path in bare_home.iterdir()) == sorted([*names, *(f"{one}.pinned" for one in names)])

    spec = families.load_family("albert")
    base = spec.variants[0]
    assert [variant.untrained for variant in spec.variants] == [False, True, True, True]
    assert base.parameters["tokenizer"] == "albert--albert-base-v2--tokenizer.json"
    assert base.accuracy is not None
    assert base.accuracy.value == 82.1
    assert spec.digest != before.digest
    assert families.load_family(spec) == spec
    assert steps.as_modelled(spec, base, [row(QUESTION), row(CONTEXT)])[0].shape == (1, 384)
    found = families.resolve("model:load", folder)(small(spec), folder).network
    torch.testing.assert_close(found.state_dict(), trained.state_dict())

    torch.save({"qa_outputs.bias": torch.zeros(2)}, bare_home / names[0])
    with pytest.raises(ConfigError, match="is pinned: delete it"):
        families.resolve("model:load", folder)(small(spec), folder)
    (bare_home / f"{names[0]}.pinned").unlink()
    assert families.load_family("albert").variants[0].untrained, "what is not pinned does not count"


@pytest.mark.slow
@needs_transformers
def test_weights_of_another_network_are_refused(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = families.load_family("albert")
    file = io.BytesIO()
    torch.save({"qa_outputs.bias": torch.zeros(2)}, file)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(file.getvalue()))
    published.fetch(spec.variants[0].published, COMMIT)  # type: ignore[arg-type]
    fetched = families.load_family("albert")
    with pytest.raises(ConfigError, match=r"base: the published weights lack [0-9]+ tensors, first albert"):
        families.resolve("model:load", Path(spec.folder))(small(fetched), Path(spec.folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"url": "http://example.org/a"}, r"published.url: 'http://example.org/a' is not https"),
        ({"url": "https://example.org/a", "sha256": "xyz"}, r"published.sha256: is the first 8"),
        ({"url": "https://example.org/{revision}/a", "sha256": "01234567"}, r"\{revision\} is for weights"),
    ],
)
def test_published_files_are_checked(file: dict[str, Any], message: str) -> None:
    from clover.types import PublishedWeights

    spec = families.load_family("albert")
    wrong = replace(spec.variants[0], published=PublishedWeights(**file))
    with pytest.raises(ConfigError, match=message):
        families.load_family(replace(spec, variants=(wrong,)))
