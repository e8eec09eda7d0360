"""Fetches the published weights and the vocabulary: `python -m clover.models.albert.fetch base@COMMIT large@COMMIT`.

They come from huggingface.co into the folder of `torch.hub`.  Weights are taken at the commit that you name, and pinned
to the digest that they have then; the vocabulary is taken at a commit that family.toml pins.
"""

from __future__ import annotations

import sys

from clover import families
from clover.families import published

if __name__ == "__main__":
    sys.exit(published.fetch_of(families.load_family("albert"), sys.argv[1:]))
