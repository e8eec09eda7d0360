"""`clover families`: the families that are installed, what each takes and gives, what it needs, how it is served; and
their manifests."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clover import families
from clover.cli import CommandParser
from clover.errors import CloverError, ConfigError
from clover.families import manifest
from clover.hints import program
from clover.terminal import line_width, listing
from clover.types import FamilySpec, TensorSpec

DISTRIBUTION = "clover-inference"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 2 for a wrong command line, 3 if a family cannot be read."""
    if argv and argv[0] == "manifest":
        return _manifest(argv[1:])
    parser = CommandParser(
        prog=f"{program()} families",
        description="List the families that come with Clover: what each answers, takes and gives, what it needs beyond "
        "Clover and whether that is installed, and how it is served.  No model is loaded.  `families manifest` writes "
        "the digests of a family's files.",
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
        print(f"clover families: {error}", file=sys.stderr)
        return 3
    extras = extras_of()
    found, faults = [], []
    for name in names:
        try:
            found.append(facts(families.load_family(name), extras))
        except ConfigError as error:
            faults.append(str(error))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join(described(one) for one in found))
    for fault in faults:
        print(f"clover families: {fault}", file=sys.stderr)
    return 3 if faults else 0


def extras_of() -> dict[str, list[str]]:
    """Return the requirements of each extra of this installation, by the extra's name.

    A source checkout is read itself, because what was noted when it was installed may be older.
    """
    source = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            declared: dict[str, list[str]] = project.get("optional-dependencies", {})
            return {_plain(name): list(wanted) for name, wanted in declared.items()}
    found: dict[str, list[str]] = {}
    try:
        for line in importlib.metadata.requires(DISTRIBUTION) or []:
            wanted, _, marker = line.partition(";")
            if extra := _EXTRA.search(marker):
                found.setdefault(_plain(extra[1]), []).append(wanted.strip())
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


def facts(spec: FamilySpec, extras: dict[str, list[str]]) -> dict[str, Any]:
    """Return what is said of a family, ready for JSON.  A family that does not ship has no extra, and needs what its
    own documentation says."""
    name = families.reference(spec)
    needs = extras.get(_plain(name), [])
    missing = [wanted for wanted in needs if not _installed(wanted)]
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
        "needs": needs,
        "missing": missing,
        "install": f'pip install "{DISTRIBUTION}[{_plain(name)}]"' if missing else None,
        "serve": f"{program()} serve {name}",
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
        ("needs", _needs(one)),
        ("serve it", one["serve"]),
    ]
    return f"{one['name']}: {one['description'] or 'no description'}\n{listing(rows, line_width())}"


def _needs(one: dict[str, Any]) -> str:
    if not one["needs"]:
        return "nothing more"
    if not one["missing"]:
        return f"{', '.join(one['needs'])} (installed)"
    return f"{', '.join(one['needs'])}; not installed: {', '.join(one['missing'])}: {one['install']}"


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _plain(name: str) -> str:
    """Return the name of an extra as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(requirement: str) -> bool:
    """Return whether the distribution that a requirement names is there; its version is not compared."""
    name = _REQUIREMENT.match(requirement)
    try:
        return name is not None and bool(importlib.metadata.version(name[1]))
    except importlib.metadata.PackageNotFoundError:
        return False


def _manifest(argv: Sequence[str]) -> int:
    """Run `families manifest`, which writes the SHA-256 of each file of a family, or checks them; return its exit code:
    0, 2 for a wrong command line, 3 if files differ or cannot be read."""
    parser = CommandParser(
        prog=f"{program()} families manifest",
        description=f"Write {manifest.MANIFEST} into the folder of a family: the SHA-256 of each of its files, in the "
        "form of sha256sum.  From then on servers and workers refuse the family if a file differs, is missing, or is "
        "not listed.  Write it anew after each change, where you trust the files.",
        epilog="exit codes: 0 done; 2 wrong command line; 3 files differ from the manifest, or cannot be read",
    )
    parser.add_argument("family", help="folder of the family, or the name of a shipped one")
    parser.add_argument("--check", action="store_true", help="write nothing: say whether the files are those listed")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        print(_check(_folder(given.family)) if given.check else _write(_folder(given.family)))
    except (CloverError, OSError) as error:
        print(f"clover families manifest: {error}", file=sys.stderr)
        return 3
    return 0


def _folder(family: str) -> Path:
    """Return the folder that is meant.  A folder is taken as it is, also while its files differ from its manifest."""
    folder = Path(family).expanduser()
    return folder.resolve() if folder.is_dir() else Path(families.load_family(family).folder)


def _check(folder: Path) -> str:
    checked = manifest.check(folder)
    if checked is None:
        raise ConfigError(f"{folder} has no {manifest.MANIFEST}")
    return f"{folder}: every file is as {manifest.MANIFEST} (SHA-256 {checked.manifest}) lists it"


def _write(folder: Path) -> str:
    text = manifest.text_of(folder)
    (folder / manifest.MANIFEST).write_text(text, encoding="utf-8")
    families.load_family(str(folder))  # it is one, and can be loaded with it
    return f"wrote {folder / manifest.MANIFEST}: {text.count(chr(10))} files"
