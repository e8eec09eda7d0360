"""What the inputs of a target come to, in this process: started by `tests.fuzz` and its test, with and without
CLOVER_SOURCE=1, to compare the compiled product with its source.

    python -m tests.fuzz.replay TARGET [FOLDER]     a digest a line: of the corpus, of its neighbours, of FOLDER's files
    python -m tests.fuzz.replay TARGET,TARGET       the same of several
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import tests.conftest  # noqa: F401  # which finds compiled modules by their source if CLOVER_SOURCE says so
from tests.fuzz.engine import Mutator, corpus, digest, load

NEIGHBOURS = 40
_SEED = 27


def cases(name: str, folder: Path | None = None) -> list[bytes]:
    """Return the inputs to compare."""
    kept = [*corpus(name), *load(name).seeds()]
    near = islice(Mutator(kept, load(name).DICTIONARY, _SEED), NEIGHBOURS)
    files = [path.read_bytes() for path in sorted(folder.iterdir())] if folder is not None else []
    return [*kept, *near, *files]


def main(names: str, *folder: str) -> None:
    """Print the digests of targets."""
    for name in names.split(","):
        print("\n".join(digest(name, cases(name, *map(Path, folder)))))


if __name__ == "__main__":
    main(*sys.argv[1:3])
