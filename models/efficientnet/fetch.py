"""Fetches the published weights: `python -m clover.models.efficientnet.fetch [b0 b3 ...]`, all of them by default.

They come from download.pytorch.org into the folder of `torch.hub`; each is checked against the digest pinned in
family.toml.
"""

from __future__ import annotations

import sys

from clover import families
from clover.families import published


def main(names: list[str]) -> int:
    """Fetch the weights of the variants `names`; return 0 if all are there."""
    return published.fetch_of(families.load_family("efficientnet"), names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
