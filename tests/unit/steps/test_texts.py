"""Texts: tokens as the library makes them, and answers as the part of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clover.errors import ConfigError
from clover.steps import BadRow
from clover.steps.step import At, bytes_row
from clover.steps.texts import TextSpan, Tokenise

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

QUESTION, CONTEXT = "who sat on the mat", "the cat sat on the mat while a dog slept under the old table"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer of whole words that marks texts as BERT's does."""
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *QUESTION.split(), *CONTEXT.split()])
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    path = tmp_path_factory.mktemp("family")
    made.save(str(path / "tokenizer.json"))
    return path


def tokenised(step: Tokenise, folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that a step makes of rows."""
    at = At("question", "input_ids", folder)
    for values in rows:
        step.row(values, at)
    columns: dict[str, Any] = {name: [values[name] for values in rows] for name in rows[0]}
    step.batch(columns, at)
    return columns


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("pad", ["length", "batch"])
def test_tokens_are_those_of_the_library(pad: Any, pair: bool, folder: Path) -> None:
    step = Tokenise(length=12, pad=pad, pair="context" if pair else "", cut="second" if pair else "longest")
    texts = [("who sat", CONTEXT), ("the unknown dog", "a cat")]
    rows = [{"question": bytes_row(a.encode()), "context": bytes_row(b.encode())} for a, b in texts]
    found = tokenised(step, folder, *rows)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(12, strategy="only_second" if pair else "longest_first")
    library.enable_padding(length=12 if pad == "length" else None)
    theirs = library.encode_batch(texts if pair else [a for a, _ in texts])
    for name, wanted in (("input_ids", "ids"), ("attention_mask", "attention_mask"), ("token_type_ids", "type_ids")):
        np.testing.assert_array_equal(np.stack(found[name]), [getattr(one, wanted) for one in theirs])
        assert found[name][0].dtype == np.int64


def test_what_is_no_text_is_refused_with_a_reason(folder: Path) -> None:
    with pytest.raises(BadRow, match="'question' is not UTF-8"):
        tokenised(Tokenise(), folder, {"question": bytes_row(b"\xff\xfe")})
    step = Tokenise(length=5, pair="context", cut="second")
    with pytest.raises(BadRow, match="cannot be made tokens"):
        tokenised(step, folder, {"question": bytes_row(QUESTION.encode()), "context": bytes_row(b"the mat")})
    with pytest.raises(ConfigError, match=r"no file 'other\.json'"):
        tokenised(Tokenise(file="other.json"), folder, {"question": bytes_row(b"x")})


def test_a_text_weighs_by_its_bytes() -> None:
    weigh = Tokenise().weight
    assert [weigh(memoryview(bytes(size))) for size in (0, 30_000, 40_000, 1_000_000)] == [1, 1, 2, 31]


def answered(folder: Path, start: int, end: int, **how: Any) -> tuple[bytes, float]:
    """Return the answer and score where the model points from the `start`-th to the `end`-th word of the context."""
    step = Tokenise(length=32, pair="context", cut="second")
    row = {"question": bytes_row(QUESTION.encode()), "context": bytes_row(CONTEXT.encode())}
    columns = tokenised(step, folder, row)
    values = {name: column[0] for name, column in columns.items()}
    first = 1 + len(QUESTION.split()) + 1
    for name, place in (("start_logits", start), ("end_logits", end)):
        logits = np.zeros(32, np.float32)
        logits[first + place] = 9.0
        logits[0] = 50.0  # of a token that is none of the context's
        values[name] = logits
    TextSpan(text="context", **how).row(values, At("offsets", "answer", folder))
    return values["answer"][0], float(values["score"][0])


def test_a_span_is_text_of_the_context(folder: Path) -> None:
    words = CONTEXT.split()
    answer, score = answered(folder, 1, 5)
    assert answer == b"cat sat on the mat"
    alone = np.exp(9.0) / (np.exp(9.0) + len(words) - 1)
    assert score == pytest.approx(alone * alone, rel=1e-5)
    assert len(answered(folder, 1, 5, max_tokens=2)[0].split()) <= 2
    assert answered(folder, 5, 1)[1] < 0.01  # an end before its start is no span
