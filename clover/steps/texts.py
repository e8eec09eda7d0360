"""Steps on texts: tokens for the model, and answers to questions as the part of a text that the model points at."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps.arithmetic import softmax
from clover.steps.step import (
    At,
    BadRow,
    Column,
    DataStep,
    bytes_row,
    file_in,
    fix_shape,
    read_tensor,
    read_text,
    text_of,
)
from clover.types import TensorSpec

_BYTES_A_ROW = 1 << 15
"""Bytes of a text whose tokens take as long as decoding a million pixels: some 30 ms."""
_WORDS = ("the", "river", "runs", "through", "a", "quiet", "town", "and", "nine", "old", "bridges", "cross", "it")


class Tokenise(DataStep, frozen=True, kw_only=True):
    """A text (UTF-8), or two of them, to tokens by a `tokenizer.json` of the family's folder, at most `length`.

    `pair` names the second text; `cut` says which text is cut ("second", "first", or "longest").  They are padded to
    `length`, or, if `pad` is "batch", to the longest of the batch.  It writes INT64 "input_ids", "attention_mask" and
    "token_type_ids", and for a `span` step INT32 "offsets" [tokens, 2] (characters) and "sequence" (0 or 1: of which
    text a token is, -1: of none).
    """

    file: str = "tokenizer.json"
    length: int = 512
    pair: str = ""
    cut: Literal["second", "first", "longest"] = "longest"
    pad: Literal["length", "batch"] = "length"
    by_row: ClassVar[bool] = True
    then_batch: ClassVar[bool] = True

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or "input_ids"

    def also_reads(self) -> tuple[str, ...]:
        """Return the second text."""
        return (self.pair,) if self.pair else ()

    def _names(self, at: At) -> tuple[str, ...]:
        return at.target, "attention_mask", "token_type_ids", "sequence", "offsets"

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        _tokenizers()
        for name in (at.source, *self.also_reads()):
            read_text(tensors, name)
        if not 3 <= self.length <= 1 << 17:
            raise ConfigError("length is 3 to 131072")
        file_in(at.folder, self.file)
        shape = (self.length if self.pad == "length" else -1,)
        for name in self._names(at):
            more = (2,) if name == "offsets" else ()
            datatype = "INT32" if name in ("offsets", "sequence") else "INT64"
            tensors[name] = fix_shape(name, datatype, (*shape, *more), (self.length, *more))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        tokenizer = _tokenizer(*_version(file_in(at.folder, self.file)), self.length, self.cut)
        texts = []
        for name in (at.source, *self.also_reads()):
            try:
                texts.append(text_of(values[name]).decode())
            except UnicodeDecodeError:
                raise BadRow(f"{name!r} is not UTF-8") from None
        try:
            encoding = tokenizer.encode(*texts)
        except MemoryError:
            raise
        except Exception as error:  # as when the first text alone is too long, and may not be cut
            raise BadRow(f"the text cannot be made tokens: {error}") from None
        sequence = np.array(
            [-1 if sequence_id is None else sequence_id for sequence_id in encoding.sequence_ids], np.int32
        )
        made = (
            np.array(encoding.ids, np.int64),
            np.array(encoding.attention_mask, np.int64),
            np.array(encoding.type_ids, np.int64),
            sequence,
            np.array(encoding.offsets, np.int32).reshape(-1, 2),
        )
        values.update(zip(self._names(at), made, strict=True))

    def weight(self, data: memoryview) -> int:
        """See `DataStep.weight`: a row more for each 32 KiB."""
        return 1 + len(data) // _BYTES_A_ROW

    def batch(self, columns: dict[str, Column], at: At) -> None:
        """See `DataStep.batch`: pad the rows."""
        longest = max(len(row) for row in columns[at.target])
        length = self.length if self.pad == "length" else longest
        padding = _padding(*_version(file_in(at.folder, self.file)))
        for name, value in zip(self._names(at), (*padding, -1, 0), strict=True):
            columns[name] = [_longer(row, length, value) for row in columns[name]]

    def sample(self, generator: np.random.Generator) -> Any:
        """Return some words."""
        return " ".join(generator.choice(_WORDS, 12)).encode()


def _longer(row: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    """Return a row [n, ...] with `value` behind it, up to `length`."""
    made = np.full((length, *row.shape[1:]), value, row.dtype)
    made[: len(row)] = row
    return made


def _version(path: Path) -> tuple[str, int]:
    return str(path), path.stat().st_mtime_ns


def _tokenizers() -> Any:
    """Return the class of the library tokenizers.  Raises ConfigError if it is not installed."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ConfigError("steps on texts need the library tokenizers: pip install tokenizers") from error
    return Tokenizer


@lru_cache(maxsize=16)
def _tokenizer(path: str, changed_ns: int, length: int, cut: str) -> Any:
    """Return the tokenizer of a file as it was changed last at `changed_ns`, that cuts texts to `length` tokens."""
    made = _tokenizers().from_file(path)
    made.no_padding()
    made.enable_truncation(length, strategy={"longest": "longest_first"}.get(cut, f"only_{cut}"))
    return made


@lru_cache(maxsize=16)
def _padding(path: str, changed_ns: int) -> tuple[int, int, int]:
    """Return what ids, mask and types are padded with, as the file of a tokenizer says: its token "[PAD]" or "<pad>"
    unless it names another; 0 if it has none."""
    with open(path, encoding="utf-8") as file:
        declared = json.load(file)
    padding = declared.get("padding") or {}
    ids = {one["content"]: one["id"] for one in declared.get("added_tokens", ())}
    token = padding.get("pad_id", ids.get("[PAD]", ids.get("<pad>", 0)))
    return int(token), 0, int(padding.get("pad_type_id", 0))


class TextSpan(DataStep, frozen=True, kw_only=True):
    """The part of a text that a model points at, with the scores of where it starts and where it ends [tokens]:
    "answer" BYTES [1], and its probability "score" FP32 [1].

    `text` names the second text of the `tokenise` step.  Probabilities are over the tokens of that text; the best
    pair spans at most `max_tokens` of them.
    """

    text: str
    start: str = "start_logits"
    end: str = "end_logits"
    max_tokens: int = 30
    input: str = "offsets"
    by_row: ClassVar[bool] = True

    def target(self, source: str) -> str:
        """Return the name of the tensor that it writes first."""
        return self.output or "answer"

    def also_reads(self) -> tuple[str, ...]:
        """Return the tensors that it reads beside `input`, the places of the tokens."""
        return self.text, self.start, self.end, "sequence"

    def flow(self, tensors: dict[str, TensorSpec], at: At) -> None:
        """See `DataStep.flow`."""
        read_tensor(tensors, at.source, ("INT32",))
        read_tensor(tensors, "sequence", ("INT32",))
        whole = read_text(tensors, self.text)
        for name in (self.start, self.end):
            if len(read_tensor(tensors, name, ("FP32", "FP16", "FP64")).shape) != 1:
                raise ConfigError(f"{name!r} has to be a score a token")
        if self.max_tokens < 1:
            raise ConfigError("max_tokens is at least 1")
        tensors[at.target] = TensorSpec(name=at.target, datatype="BYTES", shape=(1,), max_bytes=whole.max_bytes)
        tensors["score"] = fix_shape("score", "FP32", (1,))

    def row(self, values: dict[str, Any], at: At) -> None:
        """See `DataStep.row`."""
        offsets, text = values[at.source], text_of(values[self.text]).decode()
        places = np.flatnonzero(values["sequence"] == max(0, int(values["sequence"].max(initial=0))))
        if not len(places) or not text:
            values[at.target], values["score"] = bytes_row(b""), np.zeros(1, np.float32)
            return
        start, end = softmax(values[self.start][places]), softmax(values[self.end][places])
        pairs = np.triu(np.outer(start, end))
        pairs = np.tril(pairs, self.max_tokens - 1)
        first, last = np.unravel_index(int(np.nan_to_num(pairs).argmax()), pairs.shape)
        begin, until = int(offsets[places[first], 0]), int(offsets[places[last], 1])
        values[at.target] = bytes_row(text[begin:until].encode())
        values["score"] = np.array([pairs[first, last]], np.float32)
