"""The `language` family: n-grams as a slow twin counts them, a split without a shared sentence, its card."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clover import families
from clover.types import FamilySpec
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

ROWS = 800
TOLERANCE = 2.5


@pytest.fixture(scope="module")
def spec() -> FamilySpec:
    return families.load_family("language")


def module(spec: FamilySpec, loader: str) -> ModuleType:
    return sys.modules[families.resolve(loader, spec.folder).__module__]


def variant(spec: FamilySpec, name: str) -> Any:
    found = spec.variant(name)
    return families.resolve(found.loader, spec.folder)(found, Path(spec.folder))


def rows(*texts: bytes) -> list[Any]:
    made = np.empty((len(texts), 1), dtype=object)
    made[:, 0] = texts
    return [made]


def test_a_batch_counts_the_n_grams_of_each_text_and_none_across_two(spec: FamilySpec) -> None:
    ngrams = module(spec, "model:load").ngrams
    texts = ["", "a", "abc abc", "ÄÖ x", "zz"]
    buckets, begins = ngrams(texts, 3, 13, 5)
    for text, first, last in zip(texts, begins, [*begins[1:], len(buckets)], strict=True):
        alone, _ = ngrams([text], 3, 13, 5)
        assert buckets[first:last].tolist() == alone.tolist()
        length = len(text[:5]) + 2
        assert len(alone) == sum(max(0, length - order) for order in range(3))
    assert buckets.min() >= 0
    assert buckets.max() < 2**13


def test_case_does_not_matter_and_repetition_does_not_dilute(spec: FamilySpec) -> None:
    model = variant(spec, "tiny")
    one, shouted = model(rows(b"hello", b"HELLO"))[0]
    np.testing.assert_allclose(one, shouted, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_odd_texts_are_answered_and_do_not_touch_their_neighbours(spec: FamilySpec, name: str) -> None:
    model = variant(spec, name)
    odd = [b"", b"\xff\xfe\x00", "\U0001f600".encode(), b" " * 4000]
    alone = model(rows(b"Where is the station?"))[0][0]
    together = model(rows(*odd, b"Where is the station?"))[0]
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together.sum(axis=1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(together[-1], alone, rtol=1e-3, atol=1e-6)


def test_plain_sentences_are_recognised(spec: FamilySpec) -> None:
    texts = {
        "de": "Wo ist bitte der nächste Bahnhof?",
        "fr": "Où se trouve la gare, s'il vous plaît ?",
        "ja": "駅はどこですか",
        "hi": "स्टेशन कहाँ है?",
    }
    found = variant(spec, "large")(rows(*(text.encode() for text in texts.values())))[0].argmax(axis=1)
    assert [spec.outputs[0].labels[at] for at in found] == list(texts)


@pytest.mark.slow  # imports torch
def test_answers_are_those_of_the_layers_that_were_trained(spec: FamilySpec) -> None:
    """Serving needs NumPy alone; `train.py` trains torch's EmbeddingBag and Linear."""
    from safetensors.torch import load_file

    texts = ["Wo ist bitte der nächste Bahnhof?", "", "Où se trouve la gare ?", "駅はどこですか" * 40]
    for declared in spec.variants:
        tensors = {key: value.float() for key, value in load_file(Path(spec.folder) / declared.weights).items()}
        bits, sizes = len(tensors["embeddings"]).bit_length() - 1, declared.parameters
        buckets, begins = module(spec, "model:load").ngrams(texts, sizes["orders"], bits, sizes["characters"])
        bag = torch.nn.EmbeddingBag.from_pretrained(tensors["embeddings"], mode="mean")
        logits = torch.nn.functional.linear(
            bag(torch.from_numpy(buckets), torch.from_numpy(begins)), tensors["weight"], tensors["bias"]
        )
        found = variant(spec, declared.name)(rows(*(text.encode() for text in texts)))[0]
        np.testing.assert_allclose(found, logits.softmax(dim=1).numpy(), rtol=1e-4, atol=1e-6, err_msg=declared.name)


def test_labels_are_those_of_the_data(spec: FamilySpec) -> None:
    assert spec.outputs[0].labels == module(spec, "data:load").LANGUAGES


needs_eld = pytest.mark.skipif(
    importlib.util.find_spec("eld") is None, reason='needs eld: pip install "clover-inference[models]"'
)


@pytest.mark.slow
@needs_eld
def test_no_sentence_is_in_two_parts_and_accuracy_is_that_of_the_card(spec: FamilySpec) -> None:
    data = module(spec, "data:load")
    trained = set(data.sentences("train")[0])
    (texts,), labels = families.load_evaluation(spec, "held_out")
    held_out = {bytes(text).decode() for text in texts[:, 0]}
    assert len(held_out) == len(texts) == 11_832
    assert not trained & held_out
    assert {data.tenth_of(text) for text in ("It is 5 o'clock", "it is 12 o-clock!", "It is o clock")} == {0}
    assert set(labels.tolist()) == set(range(60))
    page = (Path(spec.folder) / "README.md").read_text()
    stated = dict(re.findall(r"^\| (\w+) \|.*?\| ([\d.]+) % ± [\d.]+ \|", page, re.MULTILINE))
    assert list(stated) == [each.name for each in spec.variants]
    chosen = np.random.RandomState(0).permutation(len(texts))[:ROWS]
    for name, value in stated.items():
        model = variant(spec, name)
        found = np.concatenate([model([texts[part]])[0].argmax(axis=1) for part in np.array_split(chosen, 50)])
        assert 100 * float((found == labels[chosen]).mean()) == pytest.approx(float(value), abs=TOLERANCE), name


def test_a_missing_package_is_named_with_what_installs_it(spec: FamilySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'in the package eld: pip install "clover-inference\[models\]"'):
        module(spec, "data:load").sentences_file()
