"""`clover family import REPOSITORY`: families for the models of a Triton repository, and why not for the others."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.hints import program
from clover.importing import folder
from clover.importing.draft import DraftError
from clover.importing.triton_models import ImportedModel, OpenBounds, models_of
from clover.terminal import Column, listing, plain

_WIDTH = 80
_COLUMNS = (
    Column("model", right=False),
    Column("backend", right=False),
    Column("result", right=False),
    Column("takes", right=False, spare=2),
    Column("gives", right=False, spare=1),
)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(
        prog=f"{program()} family import",
        description="Write a family for each model of a Triton repository that Clover can serve (ONNX, TorchScript, "
        "the Python backend), and say why each other model is refused.  Nothing in the repository is changed, no code "
        "of it is run, and no file from outside a model's folder is copied.",
        epilog="exit codes: 0 all models imported; 1 some were refused; 2 wrong command line; 3 nothing was imported",
    )
    parser.add_argument(
        "repository", metavar="REPOSITORY", help="the folder that you give to tritonserver --model-repository"
    )
    parser.add_argument(
        "--into", default=".", metavar="FOLDER", help="folder in which a folder is written for each family [.]"
    )
    parser.add_argument(
        "--axis",
        type=int,
        default=512,
        metavar="N",
        help="longest length of an axis that the model leaves open (-1) [512]",
    )
    parser.add_argument("--text-bytes", type=int, default=65_536, metavar="N", help="most bytes of a text [65536]")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    into = Path(given.into)
    try:
        if given.axis < 1 or given.text_bytes < 1:
            raise DraftError("--axis and --text-bytes are at least 1")
        into.mkdir(parents=True, exist_ok=True)
        models = []
        with Progress("family import", f"reading {given.repository}") as progress:
            for one in models_of(Path(given.repository), OpenBounds(given.axis, given.text_bytes)):
                models.append(_write_model(one, into))
                progress.note(f"after {one.name}, model {len(models)}")
    except (DraftError, OSError) as error:
        print(f"clover family import: {error}", file=sys.stderr)
        return 3
    lines, _ = plain(_COLUMNS, [_cells(model) for model in models], _WIDTH)
    print("\n".join(lines))
    done = [model for model in models if model.draft is not None]
    for title, rows in (
        ("refused", [(model.name, model.reason) for model in models if model.draft is None]),
        ("notes", [(model.name, note) for model in done if model.draft is not None for note in model.draft.notes]),
    ):
        if rows:
            print(f"\n{title}:\n{listing(rows, _WIDTH)}")
    print(f"\n{len(done)} of {len(models)} models were imported into {into}")
    if done:
        places = " ".join(shlex.quote(str(into / model.name)) for model in done)
        print(f"serve them with `{program()} serve {places}`")
        print(f"cheaper variants, by which Clover saves: `{program()} family new`, docs/families.md")
    return 3 if not done else 1 if len(done) < len(models) else 0


def _write_model(model: ImportedModel, into: Path) -> ImportedModel:
    """Return a model with its family written, or with the reason why it cannot be."""
    if model.draft is None:
        return model
    try:
        folder.write(model.draft, into / model.name)
    except DraftError as error:
        return model._replace(draft=None, reason=str(error))
    return model


def _cells(model: ImportedModel) -> tuple[str, ...]:
    if model.draft is None:
        return (model.name, model.backend or "?", "refused", "", "")
    takes, gives = (
        ", ".join(f"{t.datatype}{list(t.shape)}" for t in tensors)
        for tensors in (model.draft.sent, model.draft.outputs)
    )
    return (model.name, model.backend, "imported", takes, gives)
