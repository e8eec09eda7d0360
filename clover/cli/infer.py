"""`clover infer MODEL ROW...`: ask a running server, and print what it answers and what that cost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.errors import CloverError
from clover.hints import program
from clover.settings.secrets import read_secret
from clover.terminal import line_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clover.client import Client, Result, TensorInfo

_MOST = 8
"""Numbers of a row that are printed without --json."""
_SHOWN = 100
"""Characters of a row that a message repeats."""


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code: 0; 1 without an answer, 2 for wrong words, 3 without httpx."""
    environment = os.environ if environ is None else environ
    parser = CommandParser(prog=f"{program()} infer", description="Ask a model of a running server.")
    parser.add_argument("model", metavar="MODEL", help="name of the model; - is the only model that is served")
    parser.add_argument(
        "rows",
        nargs="+",
        metavar="ROW",
        help="a row of numbers: a file (.npy) or JSON ('[0.3, 0.5]'); if the model takes bytes: any file, or a text",
    )
    parser.add_argument(
        "--url",
        default=environment.get("CLOVER_URL", "http://127.0.0.1:8080"),
        help="address of the server [%(default)s]",
    )
    parser.add_argument(
        "--min-accuracy", type=float, default=0.0, metavar="PERCENT", help="lowest accuracy that the answer may have"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="seconds to wait for the answer [%(default)g]"
    )
    parser.add_argument("--cacert", default="", metavar="FILE", help="PEM certificate to trust, for https")
    parser.add_argument("--json", action="store_true", help="print all outputs and the receipt as one JSON object")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        from clover.client import Client  # the extra `client`
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        print(f"clover infer: {error}", file=sys.stderr)
        return 3
    try:
        token = read_secret(environment.get("CLOVER_TOKEN", ""), "CLOVER_TOKEN")
        with (
            Client(given.url, token=token, timeout_s=given.timeout, cacert=given.cacert) as client,
            Progress("infer", f"waiting for {given.url}"),
        ):
            result = _ask(client, given.model, given.rows, given.min_accuracy)
    except (CloverError, OSError, ValueError) as error:
        print(f"clover infer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(_document(result)) if given.json else _words(result))
    return 0


def _ask(client: Client, name: str, rows: Sequence[str], min_accuracy: float) -> Result:
    """Return the answer to these rows; raises CloverError, OSError for a file, or ValueError."""
    if name == "-":
        names = client.models()
        if len(names) != 1:
            raise ValueError(f"{len(names)} models are ready: name one of {', '.join(names) or 'none'}")
        [name] = names
    model = client.describe(name)
    if len(model.inputs) != 1:
        raise ValueError(f"{name} takes {len(model.inputs)} inputs: ask it with clover.client")
    text = model.inputs[0].datatype == "BYTES"
    inputs: Any
    if text:
        inputs = [Path(row) if os.path.isfile(row) else row for row in rows]
    else:
        import numpy as np

        arrays = [_array(row, model.inputs[0]) for row in rows]
        rank = len(model.inputs[0].shape)
        inputs = np.concatenate([array[np.newaxis] if array.ndim == rank else array for array in arrays])
    return client.infer(name, inputs, min_accuracy=min_accuracy, full_receipt=True)


def _array(row: str, tensor: TensorInfo) -> NDArray[Any]:
    """Return the array in a file, or of a JSON list, whose numbers become those that `tensor` takes; raises OSError, or
    ValueError if there is none."""
    import numpy as np

    # Of a row that is too long to be a path `os.path` says that there is no such file, where `Path` raises OSError.
    path = Path(row)
    if row.lstrip().startswith("[") and not os.path.isfile(row):
        try:
            values = np.asarray(json.loads(row))
        except ValueError as error:
            raise ValueError(f"{_cut(row)} is no JSON list of numbers with rows of one length: {error}") from None
        return values.astype(np.float64) if tensor.datatype.startswith("FP") and values.dtype.kind in "iu" else values
    if not os.path.exists(row):
        raise ValueError(
            f"there is no file {_cut(row)}; this model takes {tensor}: "
            "a file that numpy.save wrote, or JSON as '[0.3, 0.5]'"
        )
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError:
            raise ValueError(f"{path} holds no array of numbers: this model takes such as numpy.save writes") from None


def _cut(row: str) -> str:
    """Return a row as messages show it: without most of a long one."""
    return row if len(row) <= _SHOWN else f"{row[:_SHOWN]}... ({len(row)} characters)"


def _plain(value: Any) -> Any:
    """Return bytes inside nested lists as text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _document(result: Result) -> dict[str, Any]:
    receipt = result.receipt
    return {
        "model": result.model,
        "version": result.version,
        "outputs": {name: _plain(array.tolist()) for name, array in result.outputs.items()},
        "receipt": dict(receipt.members) if receipt is not None else None,
    }


def _words(result: Result) -> str:
    """Return a line for each row, and one for what they cost."""
    try:
        labels = result.labels()
    except ValueError:
        labels = []
    first = next(iter(result.outputs.values()))
    lines = []
    for at, row in enumerate(first):
        head = f"{labels[at]}\t" if labels else ""
        values = _plain(row.reshape(-1)[:_MOST].tolist())
        words = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
        while len(words) > 1 and len(f"{head}{' '.join(words)} ...".expandtabs()) > line_width():
            words.pop()
        lines.append(head + " ".join(words) + (" ..." if row.size > len(words) else ""))
    receipt = result.receipt
    if receipt is not None:
        kept = ", kept from an earlier request" if receipt.cached else ""
        lines.append(
            f"{receipt.variant}: {receipt.energy_j * 1e3:.4g} mJ ({receipt.method}), "
            f"{receipt.carbon_mg * 1e3:.4g} ug CO2e (intensity {receipt.intensity_method or 'unknown'}){kept}"
        )
    return "\n".join(lines)
