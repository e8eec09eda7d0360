"""Writes `tokenizer.json`, the vocabulary of the untrained variants: `python -m clover.models.albert.tokens`.

ALBERT's own vocabulary is published and not shipped.  This one has the same form (lower case, pieces marked by "▁",
`[CLS] question [SEP] text [SEP]`, the same ids of the marks) and cuts words into single letters, digits and the
commonest endings, so that a text has more tokens than with the published one.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

MARKS = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the of and in to a is was for on as by with that from at it an are which who what when where how why did does "
    "many not has have his her their this be or were but"
)
ENDINGS = "ing ed er es en on an in re at or is it al ar st nd th ion tion ment ness ly est ous able"


def main(path: Path) -> int:
    """Write the file and return 0."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    singles = "▁" + string.ascii_lowercase + string.digits + string.punctuation
    scores = dict.fromkeys(MARKS, 0.0)
    pieces = [*(f"▁{word}" for word in WORDS.split()), *ENDINGS.split()]
    scores.update((piece, -4.0 - 0.01 * at) for at, piece in enumerate(pieces))
    scores.update((letter, -6.0) for letter in singles if letter not in scores)
    made = Tokenizer(models.Unigram(list(scores.items()), unk_id=1, byte_fallback=False))
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(list(MARKS))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "tokenizer.json"))
