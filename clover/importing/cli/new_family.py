"""`clover family new FOLDER --from ...`: a family for a model that is there, measured at the end."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.datatypes import DATATYPES
from clover.errors import CloverError
from clover.families.declaration import NAME
from clover.hints import did_you_mean, program
from clover.importing import folder, onnx_source, torch_source, triton_models
from clover.importing.draft import DraftError, FamilyDraft
from clover.importing.evaluation_rows import with_rows
from clover.terminal import line_width, listing, wrapped
from clover.types import TensorSpec

_MOST = 8
"""Variants that are proposed, at most."""

_ABOUT = """\
Write a family for a model that you have, and measure it.  --from is one of

  module:Class, module:function  a torch module, built without arguments
  FILE.onnx                      an ONNX model
  FOLDER                         a model of a Triton repository (config.pbtxt)

Several --from (modules or ONNX files) are variants that answer the same
question, cheaper and dearer.
"""
_END = """\
Compiled forms (AOTInductor, ONNX Runtime, TensorRT), channels-last and int8 of
torch modules are not proposed as variants: the profiler chooses the backend of
each variant by itself.

exit codes: 0 done; 2 wrong command line; 3 no family can be made
of it, and nothing was written; 4 written, but it cannot be measured
"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        given = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    target = Path(given.folder)
    try:
        folder.check_target(target)
        name = given.name or target.resolve().name
        if not NAME.fullmatch(name) or name.startswith("."):
            raise DraftError(f"{name!r} is no name of a family (A-Z a-z 0-9 . _ -): name another with --name")
        with (
            Progress("family new", f"reading {', '.join(given.sources)}"),
            tempfile.TemporaryDirectory(prefix="clover-new-family-") as place,
        ):
            draft = _draft(name, given, Path(place))
            spec = folder.write(draft, target)
    except (CloverError, OSError) as error:
        print(f"clover family new: {error}", file=sys.stderr)
        return 3
    rows = [(variant.name, draft.variants[index].comment) for index, variant in enumerate(spec.variants)]
    columns = line_width()
    print(wrapped(f"{target}: the family {spec.name}, from {draft.source}", columns, "  "))
    print(listing([("variants", ", ".join(one.name for one in spec.variants)), *rows, *_tensors(draft)], columns))
    for note in draft.notes:
        print(listing([("note", note)], columns))
    called, quoted = program(), shlex.quote(str(target) if target.is_absolute() else f"./{target}")
    serve = f"{called} serve {quoted}"
    if given.no_profile:
        print(f"\n{wrapped(f'measure it with `{called} profile {quoted}`; serve it with `{serve}`', columns)}")
        return 0
    from clover.cli import profile

    quick = f"measuring it, quickly (`{called} profile {quoted}` takes longer, and says more):"
    print(f"\n{wrapped(quick, columns)}", flush=True)
    if profile.main([str(target.resolve()), "--quick", *(["--device", given.device] if given.device else [])]) != 0:
        print(f"clover family new: {target} was written, but cannot be measured: see above", file=sys.stderr)
        return 4
    print(f"\n{wrapped(f'serve it with `{serve}`', columns)}")
    return 0


def _parser() -> CommandParser:
    from argparse import RawDescriptionHelpFormatter

    parser = CommandParser(
        prog=f"{program()} family new",
        description=_ABOUT,
        epilog=_END,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the folder to write, which must not be there yet")
    add(
        "--from",
        dest="sources",
        action="append",
        required=True,
        metavar="SOURCE",
        help="your model; repeat it for more variants",
    )
    add("--name", help="the model's name for clients [the folder's]")
    add("--weights", action="append", default=[], metavar="FILE", help="state dict of each --from module:..., in order")
    add(
        "--input",
        action="append",
        default=[],
        metavar="NAME:DATATYPE:SHAPE",
        help="a tensor that the model takes, without the batch axis: image:FP32:3,224,224; -1..512 varies up to 512",
    )
    add(
        "--evaluate",
        metavar="PATH",
        help="rows to evaluate with: a folder of CLASS/FILE, or a CSV (features and label; file,label; "
        "text,label); without labels, agreement with the best variant stands in for accuracy",
    )
    add("--variants", type=int, default=3, metavar="N", help="most variants to propose [3]")
    add("--no-profile", action="store_true", help="do not measure the family at the end")
    add("--device", help="what to measure on, as `clover profile --device`")
    return parser  # fmt: skip


def _draft(name: str, given: Namespace, scratch: Path) -> FamilyDraft:
    """Return what the command line asks for.  Raises DraftError."""
    if not 1 <= given.variants <= _MOST:
        raise DraftError(f"--variants is 1 to {_MOST}, not {given.variants}")
    sources, inputs = list(given.sources), tuple(tensor_of(text) for text in given.input)
    rows = Path(given.evaluate) if given.evaluate else None
    kinds = {_kind(source) for source in sources}
    if len(kinds) > 1 or ("triton" in kinds and len(sources) > 1):
        raise DraftError("several --from are modules of yours, or ONNX files: variants of one kind")
    kind = kinds.pop()
    if kind != "module" and given.weights:
        raise DraftError("--weights belong to torch modules of yours: --from module:Class")
    if kind == "onnx":
        draft = with_rows(onnx_source.draft_of(name, sources, inputs), rows)
        return onnx_source.with_int8(draft, scratch) if len(draft.variants) < given.variants else draft
    if kind == "triton":
        draft = triton_models.draft_of(Path(sources[0]), triton_models.OpenBounds())
        return with_rows(replace(draft, name=name), rows)
    request = torch_source.TorchRequest(name, tuple(sources), tuple(given.weights), inputs)
    return with_rows(torch_source.draft_of(request, scratch), rows)


def _kind(source: str) -> str:
    """Return the kind of a source: "onnx", "triton", or "module".  Raises DraftError for any other path."""
    path = Path(source)
    if path.suffix == ".onnx":
        return "onnx"
    if path.is_dir():
        if not (path / "config.pbtxt").is_file() and not any(child.is_dir() for child in path.iterdir()):
            raise DraftError(f"{source} is a folder without config.pbtxt and versions: no model of a Triton repository")
        return "triton"
    return "module"


def tensor_of(text: str) -> TensorSpec:
    """Return the tensor of NAME:DATATYPE:SHAPE; an axis is a number, or -1..MOST.  Raises DraftError."""
    how = "it is NAME:DATATYPE:SHAPE, as in image:FP32:3,224,224, or ids:INT64:-1..512"
    name, _, rest = text.partition(":")
    datatype, _, axes = rest.partition(":")
    if not NAME.fullmatch(name) or not rest:
        raise DraftError(f"--input {text!r}: {how}")
    if datatype not in DATATYPES:
        raise DraftError(
            f"--input {text!r}: datatype {datatype!r} is unknown{did_you_mean(datatype.upper(), DATATYPES)}"
        )
    shape, bound = [], []
    for axis in filter(None, axes.split(",")):
        match = re.fullmatch(r"(?:(-1)\.\.)?([1-9]\d{0,8})", axis.strip())
        if match is None:
            raise DraftError(f"--input {text!r}: axis {axis!r}: {how}")
        shape.append(-1 if match[1] else int(match[2]))
        bound.append(int(match[2]))
    room = 65_536 if datatype == "BYTES" else 0
    return TensorSpec(
        name=name, datatype=datatype, shape=tuple(shape), max_shape=tuple(bound) if -1 in shape else (), max_bytes=room
    )


def _tensors(draft: FamilyDraft) -> list[tuple[str, str]]:
    return [
        (verb, ", ".join(f"{text.name} {text.datatype} {list(text.shape)}" for text in listed))
        for verb, listed in (("takes", draft.sent), ("gives", draft.outputs))
    ]
