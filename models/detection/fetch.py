"""Fetches the published weights: `python -m clover.models.detection.fetch n s@COMMIT ...`.

They come from huggingface.co into the folder of `torch.hub`.  Those of n are taken at the commit and with the digest
that family.toml pins, the others at the commit that you name, and pinned to the digest that they have then.
"""

from __future__ import annotations

import sys

from clover import families
from clover.families import published

if __name__ == "__main__":
    sys.exit(published.fetch_of(families.load_family("detection"), sys.argv[1:]))
