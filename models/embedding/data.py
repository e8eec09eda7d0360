"""Pairs of a document and a question that mean the same in other words, made here, and whether the one finds the other.

A document says who does what to which thing where, in one wording; its question says the same in another wording and
order, with none of its nouns and verbs.  Of the 12 x 12 x 12 x 8 such facts `DOCUMENTS` are the collection that is
searched; the questions of a split ask for some of them.  The answer to a question is right if, of all documents, its
own is the nearest.  The documents' vectors are those of the best variant, as those of a collection that was indexed before;
only the question's is the variant's that answers.  NumPy and the files of wordllama.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model import WIDEST, Embedder

DOCUMENTS = 2000
ROWS = {"calibration": (0, 800), "held_out": (800, 2000)}
SEED = 5

WHO = (
    ("the doctor", "a physician"), ("our teacher", "the school instructor"), ("a lawyer", "the attorney"),
    ("the farmer", "a man who grows crops"), ("the policeman", "a law enforcement officer"),
    ("the chef", "a restaurant cook"), ("the pilot", "an airline captain"), ("the author", "a novelist"),
    ("a child", "some young kid"), ("the sailor", "a seaman"), ("the painter", "an artist"),
    ("the student", "a university pupil"),
)  # fmt: skip
DOES = (
    ("bought", "purchased"), ("repaired", "fixed"), ("lost", "could no longer find"), ("hid", "concealed"),
    ("cleaned", "washed"), ("destroyed", "smashed to pieces"), ("sold", "got money for"), ("stole", "robbed"),
    ("photographed", "took pictures of"), ("measured", "determined the size of"), ("burned", "set fire to"),
    ("delivered", "brought"),
)  # fmt: skip
WHAT = (
    ("an old car", "an ancient automobile"), ("the bicycle", "a bike"), ("a boat", "a small ship"),
    ("the couch", "a sofa"), ("a photograph", "a snapshot"), ("the computer", "a laptop"),
    ("some medicine", "pills"), ("a gemstone", "a diamond"), ("the coat", "a jacket"),
    ("a letter", "some mail"), ("the clock", "a wristwatch"), ("the garbage", "trash"),
)  # fmt: skip
WHERE = (
    ("in the woods", "inside a forest"), ("at the seaside", "on the beach"), ("in the hospital", "at a clinic"),
    ("downtown", "in the middle of the city"), ("on the mountain", "near a summit"),
    ("at the airport", "beside the runway"), ("in the kitchen", "where meals are prepared"),
    ("at church", "inside a cathedral"),
)  # fmt: skip


@cache
def facts() -> tuple[list[str], list[str]]:
    """Return the documents of the collection, and the question for each."""
    sizes = tuple(len(part) for part in (WHO, DOES, WHAT, WHERE))
    # RandomState, unlike default_rng, is frozen: the same seed gives the same facts in every NumPy.
    chosen = np.random.RandomState(SEED).permutation(int(np.prod(sizes)))[:DOCUMENTS]
    documents, questions = [], []
    for who, does, what, where in zip(*np.unravel_index(chosen, sizes), strict=True):
        documents.append(f"Yesterday {WHO[who][0]} {DOES[does][0]} {WHAT[what][0]} {WHERE[where][0]}.")
        questions.append(f"Which text is about {WHAT[what][1]} that {WHO[who][1]} {DOES[does][1]}, {WHERE[where][1]}?")
    return documents, questions


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Return the questions of `split` ("calibration" or "held_out") in `[text]`, and the number of each's document."""
    first, last = ROWS[split]
    rows = np.empty((last - first, 1), dtype=object)
    rows[:, 0] = [question.encode() for question in facts()[1][first:last]]
    return [rows], np.arange(first, last)


@cache
def indexed() -> NDArray[np.float32]:
    """Return the vectors of all documents, float32 [documents, 256], by the best variant."""
    return Embedder(WIDEST).vectors(facts()[0])


def ranks(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many documents are nearer to each question than its own: 0 if it comes first."""
    near = vectors @ indexed().T
    return (near > near[np.arange(len(labels)), labels][:, None]).sum(axis=1)


def comes_first(outputs: dict[str, NDArray[Any]], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for which questions their own document is the nearest of all."""
    first: NDArray[np.bool_] = ranks(outputs["embedding"], labels) == 0
    return first


def reciprocal_rank(outputs: dict[str, NDArray[Any]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 for questions whose document comes first, 1/2 for those where it comes second, and so on."""
    found: NDArray[np.float64] = 1.0 / (1.0 + ranks(outputs["embedding"], labels))
    return found
