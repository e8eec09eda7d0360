"""The language of the package: no two public classes share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.support.syntax_trees import nodes

ROOT = Path(__file__).resolve().parents[2]


def test_public_classes_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for path in sorted((ROOT / "clover").rglob("*.py")):
        for node in ast.iter_child_nodes(nodes(path)[0]):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert not shared
