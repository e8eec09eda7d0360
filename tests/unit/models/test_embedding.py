"""The `embedding` family: vectors as the library makes them, comparable between variants, and a truth that is exact."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clover import families
from clover.types import FamilySpec

TEXTS = ["Where is the station?", "", "  ", "ein kurzer Text", "naïve \U0001f600 " * 30]

needs_wordllama = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason='needs wordllama: pip install "clover-inference[models]"'
)


@pytest.fixture(scope="module")
def spec() -> FamilySpec:
    return families.load_family("embedding")


def test_it_answers_in_openais_shape(spec: FamilySpec) -> None:
    assert spec.openai is not None
    assert spec.openai.embeddings  # docs/protocol.md asks /v1/embeddings for the model "embedding"


def module(spec: FamilySpec, loader: str) -> ModuleType:
    return sys.modules[families.resolve(loader, spec.folder).__module__]


def variant(spec: FamilySpec, name: str) -> Any:
    found = spec.variant(name)
    return families.resolve(found.loader, spec.folder)(found, Path(spec.folder))


def rows(texts: list[str]) -> list[Any]:
    made = np.empty((len(texts), 1), dtype=object)
    made[:, 0] = [text.encode() for text in texts]
    return [made]


@needs_wordllama
@pytest.mark.parametrize(("name", "numbers"), [("d64", 64), ("d256", 256)])
def test_vectors_are_those_of_the_library(spec: FamilySpec, name: str, numbers: int) -> None:
    tokenizer, vectors = module(spec, "model:load").vocabulary()
    before = logging.root.handlers[:], logging.root.level
    inference = pytest.importorskip("wordllama.inference")
    logging.root.handlers[:], logging.root.level = before  # importing it sets both
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(tokenizer.to_str())
    theirs = inference.WordLlamaInference(vectors[:, :numbers], own)
    texts = [text for text in TEXTS if text.strip()]
    expected = theirs.embed(texts, norm=True)
    found = variant(spec, name)(rows(texts))[0]
    np.testing.assert_allclose(found[:, :numbers], expected, atol=1e-5)
    assert not found[:, numbers:].any()


@needs_wordllama
def test_every_text_has_a_vector_of_length_one_or_of_zeros(spec: FamilySpec) -> None:
    found = variant(spec, "d128")(rows(TEXTS))[0]
    assert found.shape == (len(TEXTS), 256)
    assert found.dtype == np.float32
    lengths = np.linalg.norm(found, axis=1)
    assert np.isclose(lengths, 1.0, atol=1e-5)[[0, 3, 4]].all()
    assert lengths[1] == 0.0
    same = variant(spec, "d128")(rows(TEXTS[:1]))[0]
    np.testing.assert_array_equal(found[:1], same)


def test_facts_are_different_and_questions_share_no_noun_or_verb(spec: FamilySpec) -> None:
    data = module(spec, "data:load")
    documents, questions = data.facts()
    assert len(set(documents)) == len(set(questions)) == data.DOCUMENTS == data.ROWS["held_out"][1]
    small = {"the", "a", "an", "some", "at", "in", "on", "inside", "of", "to", "our"}
    for part in (data.WHO, data.DOES, data.WHAT, data.WHERE):
        for one, other in part:
            assert not (set(one.split()) & set(other.split())) - small, (one, other)
    calibration, held_out = (data.ROWS[split] for split in families.SPLITS)
    assert calibration[1] <= held_out[0]


@needs_wordllama
def test_accuracy_is_that_of_the_card_in_order(spec: FamilySpec) -> None:
    page = (Path(spec.folder) / "README.md").read_text()
    stated = dict(re.findall(r"^\| (d\d+) \| ([\d.]+) % ±", page, re.MULTILINE))
    assert list(stated) == [each.name for each in spec.variants]
    inputs, labels = families.load_evaluation(spec, "held_out")
    chosen = np.arange(0, len(labels), 3)
    first = families.resolve("data:comes_first", spec.folder)
    rank = families.resolve("data:reciprocal_rank", spec.folder)
    for name, value in stated.items():
        outputs = {"embedding": variant(spec, name)([inputs[0][chosen]])[0]}
        right, ranks = first(outputs, labels[chosen]), rank(outputs, labels[chosen])
        assert 100 * float(right.mean()) == pytest.approx(float(value), abs=6.0)
        assert ((ranks == 1.0) == right).all()
        assert ranks.min() > 0.0


def test_a_missing_package_is_named_with_what_installs_it(spec: FamilySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module(spec, "model:load")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'needs wordllama: pip install "clover-inference\[models\]"'):
        model.vocabulary.__wrapped__()
