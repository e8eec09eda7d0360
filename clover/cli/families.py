"""`clover family list`: the families that are installed, what each takes and gives, and how it is served."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from clover import families
from clover.cli import CommandParser
from clover.errors import ConfigError
from clover.hints import program
from clover.terminal import line_width, listing, wrapped
from clover.types import FamilySpec, TensorSpec

_NEEDS = (
    'Most need further packages: `pip install "clover-inference[models]"`; `{} doctor` lists the packages that are '
    "missing."
)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 2 for a wrong command line, 3 if a family cannot be read."""
    parser = CommandParser(
        prog=f"{program()} family list",
        description="List the families that come with Clover: what each answers, takes and gives, and how it is "
        "served.  No model is loaded.",
        epilog="exit codes: 0 done; 2 wrong command line; 3 a family cannot be read",
    )
    parser.add_argument("family", nargs="*", help="only these: shipped names, folders, or module:attribute")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        names = given.family or families.shipped()
    except ConfigError as error:
        print(f"clover family list: {error}", file=sys.stderr)
        return 3
    found, faults = [], []
    for name in names:
        try:
            found.append(facts(families.load_family(name)))
        except ConfigError as error:
            faults.append(str(error))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join(described(one) for one in found))
        if not given.family:
            print(f"\n{wrapped(_NEEDS.format(program()), line_width())}")
    for fault in faults:
        print(f"clover family list: {fault}", file=sys.stderr)
    return 3 if faults else 0


def facts(spec: FamilySpec) -> dict[str, Any]:
    """Return what is said of a family, ready for JSON."""
    return {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "folder": spec.folder,
        "inputs": [_tensor(tensor) for tensor in spec.inputs],
        "outputs": [_tensor(tensor) for tensor in spec.outputs],
        "variants": [variant.name for variant in spec.variants],
        "metric": spec.evaluation.metric if spec.evaluation is not None else None,
        "published": {v.name: v.accuracy.value for v in spec.variants if v.accuracy is not None and not v.untrained},
        "untrained": [v.name for v in spec.variants if v.untrained],
        "cascades": spec.confidence is not None and spec.evaluation is not None,
        "serve": f"{program()} serve {families.reference(spec)}",
    }


def described(one: dict[str, Any]) -> str:
    """Return the lines of text that say the same."""
    takes, gives = (
        ", ".join(f"{t['name']} {t['datatype']} {t['shape']}" for t in one[key]) for key in ("inputs", "outputs")
    )
    measured = f"measured here ({one['metric']})" if one["metric"] else "published" if one["published"] else "not known"
    if one["untrained"]:
        held = f"{', '.join(one['untrained'])}: UNTRAINED, published weights are not here (README.md of the folder)"
        measured = f"{measured}; {held}" if one["published"] or one["metric"] else held
    rows = [
        ("variants", ", ".join(one["variants"])),
        ("takes", takes),
        ("gives", gives),
        ("accuracy", measured),
        ("cascades", "yes" if one["cascades"] else "no"),
        ("licence", one["licence"] or "not stated"),
        ("serve it", one["serve"]),
    ]
    return f"{one['name']}: {one['description'] or 'no description'}\n{listing(rows, line_width())}"


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
