"""`clover batch run FILE --model NAME --within 24h`: have many rows answered in the grid's clean hours.

`run` sends the rows, waits, and writes the answers.  What it waits for is on the server: if the command is ended, the
same command takes the job up again, which it knows by the digest of the file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from clover.cli import CommandParser, CommandRefused
from clover.cli.ctl.command import DEFAULT_URL, Unreachable, connect
from clover.errors import CloverError, untrusted
from clover.hints import duration, printable, program
from clover.quantities import grams
from clover.settings.secrets import read_secret

_PIECE_BYTES = 1 << 20
_POLL_S = 2.0
_PIPE_S = 600.0
"""Seconds between two lines of progress in a pipe, unless something else than a count changed."""
_DIGEST = "clover_input"
"""The metadata by which a job is known again."""
_RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
_BOUNDARY = "clover-rows"


class _Server:
    """One server, asked in OpenAI's shape."""

    def __init__(self, url: str, token: str, cacert: str) -> None:
        self.url = url
        self._cacert = cacert
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send one request and return the document of its answer; raises Unreachable, CommandRefused or ValueError."""
        with self._answer(method, path, body, headers or {}) as response:
            text = response.read()
        return json.loads(text)

    def download(self, name: str, file: IO[bytes]) -> None:
        """Append the contents of a file of the server to `file`."""
        with self._answer("GET", f"/v1/files/{name}/content", None, {}) as response:
            while piece := response.read(_PIECE_BYTES):
                file.write(piece)

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give its answer, whose body is read inside; raises Unreachable or CommandRefused."""
        headers = {**self._headers, **headers}
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {**headers, "Content-Type": "application/json"}
        connection = connect(self.url, self._cacert)
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before all of it was sent: the answer says why
                connection.request(method, path, body, headers, encode_chunked=True)
            response = connection.getresponse()
            if response.status != 200:
                raise CommandRefused(_message(response.read()) or "the server refused", response.status)
            yield response
        except (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            hint = untrusted(reason) or "; is the server running, and is --url right?"
            raise Unreachable(f"no answer from {self.url}: {reason}{hint}") from error
        finally:
            connection.close()


def _message(text: bytes) -> str:
    """Return the error in an answer."""
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(error.get("message", "") if isinstance(error, dict) else error)


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code: 0; 1 if the server refuses or rows failed, 2 for wrong words, 3 without
    a server, 130 if it is ended before the answers are there."""
    environment = os.environ if environ is None else environ
    try:
        given = _parser(environment).parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        token = read_secret(given.token or environment.get("CLOVER_TOKEN", ""), "--token")
        server = _Server(given.url, token, given.cacert)
        return int(given.run(server, given))
    except Unreachable as error:
        print(f"clover batch: {error}", file=sys.stderr)
        return 3
    except CommandRefused as error:
        print(f"clover batch: {error} ({error.status})" if error.status else f"clover batch: {error}", file=sys.stderr)
        return 1
    except (CloverError, OSError, ValueError) as error:
        print(f"clover batch: {error}", file=sys.stderr)
        return 2


def _parser(environment: Mapping[str, str]) -> CommandParser:
    common = CommandParser(add_help=False)
    url = environment.get("CLOVER_URL", DEFAULT_URL)
    common.add_argument("--url", default=url, help="http(s)://HOST:PORT of the server [%(default)s]")
    common.add_argument("--token", default="", help="bearer token, or file:PATH; also CLOVER_TOKEN")
    common.add_argument("--cacert", default="", metavar="FILE", help="PEM certificate to trust, for https")
    common.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    about = "Have many rows answered in the grid's clean hours, and none late."
    parser = CommandParser(prog=f"{program()} batch", description=about)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser("run", help="send a file of rows, wait, write the answers", parents=[common])
    run.add_argument(
        "file",
        metavar="FILE",
        help="a row a line: .txt texts; .npy rows of numbers; else JSON: a text, a list of numbers, the body of an "
        "infer request, or a line of OpenAI's batches; or a folder, each file of which is a row, as a picture",
    )
    run.add_argument("--model", required=True, metavar="NAME", help="the model that answers")
    run.add_argument(
        "--within", default="24h", metavar="TIME", help="15m to 7d: when all has to be there [%(default)s]"
    )
    run.add_argument("--now", action="store_true", help="run as soon as the machine is free, however dirty the grid is")
    run.add_argument(
        "--output", default="", metavar="FILE", help="file of the answers [FILE without its ending, and .answers.jsonl]"
    )
    run.add_argument("--again", action="store_true", help="begin anew, also if the file was sent before")
    run.set_defaults(run=_run)
    listed = verbs.add_parser("list", help="list your batches, the newest first", parents=[common])
    listed.set_defaults(run=_list)
    show = verbs.add_parser("show", help="show a batch: done, planned, cost", parents=[common])
    cancel = verbs.add_parser("cancel", help="end a batch; what is answered is kept", parents=[common])
    for verb, function in ((show, _show), (cancel, _cancel)):
        verb.add_argument("id", metavar="ID", help="as batch_0123456789abcdef01234567")
        verb.set_defaults(run=function)
    return parser


# --- list, show, cancel -----------------------------------------------------------------------------------------------


def _all_batches(server: _Server) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        page = server.ask("GET", f"/v1/batches?limit=100{after}")
        yield from page["data"]
        if not page["has_more"]:
            return
        after = f"&after={quote(page['last_id'], safe='')}"


def _list(server: _Server, given: argparse.Namespace) -> int:
    found = list(_all_batches(server))
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    for batch in found:
        counts = batch["request_counts"]
        done = f"{counts['completed'] + counts['failed']} of {counts['total']}"
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["expires_at"]))
        print(f"{batch['id']}  {batch['status']:<11}  {done:>17}  until {until}  {batch['model'] or ''}")
    if not found:
        print("no batches")
    return 0


def _show(server: _Server, given: argparse.Namespace) -> int:
    return _print(server.ask("GET", f"/v1/batches/{quote(given.id, safe='')}"), given)


def _cancel(server: _Server, given: argparse.Namespace) -> int:
    return _print(server.ask("POST", f"/v1/batches/{quote(given.id, safe='')}/cancel"), given)


def _print(batch: dict[str, Any], given: argparse.Namespace) -> int:
    if given.json:
        print(json.dumps(batch, indent=1))
        return 0
    print(f"{batch['id']}: {batch['status']}, {batch['model'] or 'no model yet'} at {batch['endpoint']}")
    print(_progress(batch))
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["expires_at"]))
    print(f"all is to be there by {until} ({batch['completion_window']})")
    for name in ("output_file_id", "error_file_id"):
        if batch[name]:
            print(f"{name}: {batch[name]}")
    for line in _errors(batch):
        print(line)
    return 0


def _errors(batch: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the input of a batch, a line each."""
    errors = batch["errors"]["data"] if batch["errors"] else []
    return [
        printable(f"line {error['line']}: {error['message']}" if error["line"] else error["message"])
        for error in errors
    ]


def _progress(batch: Mapping[str, Any]) -> str:
    """Return how far a batch is, in words."""
    counts, clover = batch["request_counts"], batch["clover"]
    if batch["status"] == "validating":
        return f"{counts['total']:,} rows are read"
    words = [f"{counts['completed'] + counts['failed']:,} of {counts['total']:,} done"]
    if counts["failed"]:
        words.append(f"{counts['failed']:,} failed")
    if clover["carbon_g"]:
        words.append(f"{grams(clover['carbon_g'])} CO2e so far")
    if clover["plan"]:
        words.append(clover["plan"])
    return ", ".join(words)


# --- run --------------------------------------------------------------------------------------------------------------


def _run(server: _Server, given: argparse.Namespace) -> int:
    source = Path(given.file)
    output = Path(given.output) if given.output else source.with_suffix(".answers.jsonl")
    if output.exists():
        raise ValueError(f"{output} is there already: name another file with --output")
    digest = _digest(source, given.model)
    batch = None if given.again else _find(server, digest)
    if batch is None:
        batch = _send(server, given, source, digest)
        _say(f"sent as {batch['id']}: all is to be there within {given.within}")
    else:
        _say(f"{batch['id']} has these rows already: it is taken up again (--again begins anew)")
    try:
        batch = _wait(server, batch)
    except KeyboardInterrupt:
        _say(
            f"{batch['id']} goes on at the server: the same command takes it up again, and "
            f"`{program()} batch cancel {batch['id']}` ends it"
        )
        return 130
    if batch["status"] == "failed":
        raise CommandRefused(f"{source} was refused\n" + "\n".join(_errors(batch)))
    _write(server, batch, output)
    print(json.dumps(batch, indent=1) if given.json else f"{output}: {_progress(batch)}, {batch['status']}")
    return 0 if batch["status"] == "completed" and not batch["request_counts"]["failed"] else 1


def _say(text: str) -> None:
    print(f"clover batch: {text}", file=sys.stderr, flush=True)


def _digest(source: Path, model: str) -> str:
    """Return the digest of a file and the model that it is for."""
    found = hashlib.sha256(model.encode() + b"\0")
    for path in _files(source) if source.is_dir() else [source]:
        if path != source:
            found.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                found.update(piece)
    return found.hexdigest()


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder by name, but not the hidden ones and those of its folders."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} has no files")
    return found


def _find(server: _Server, digest: str) -> dict[str, Any] | None:
    """Return the newest batch of this digest that runs or is complete."""
    for batch in _all_batches(server):
        if (batch["metadata"] or {}).get(_DIGEST) == digest and batch["status"] in (*_RUNNING, "completed"):
            return batch
    return None


def _send(server: _Server, given: argparse.Namespace, source: Path, digest: str) -> dict[str, Any]:
    """Send the rows and begin their batch; return it."""
    ask = _Asking.of(server, given.model, source)
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}", "Transfer-Encoding": "chunked"}
    file = server.ask("POST", "/v1/files", _in_pieces(_form(ask.lines(source), source.name)), headers)
    try:
        created: dict[str, Any] = server.ask(
            "POST",
            "/v1/batches",
            {
                "input_file_id": file["id"],
                "endpoint": ask.endpoint,
                "completion_window": given.within,
                "metadata": {"carbon": "now" if given.now else "wait", _DIGEST: digest},
            },
        )
    except CommandRefused:
        server.ask("DELETE", f"/v1/files/{file['id']}")
        raise
    return created


def _form(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the form of an upload."""
    shown = "".join(character if character.isalnum() or character in "._- " else "_" for character in name)
    field = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="'
    yield f'{field}purpose"\r\n\r\nbatch\r\n'.encode()
    yield f'{field}file"; filename="{shown}"\r\nContent-Type: application/jsonl\r\n\r\n'.encode()
    yield from lines
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()


def _in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about `_PIECE_BYTES`."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


class _Asking:
    """How the rows of a file become requests to a model."""

    def __init__(self, model: str, tensors: Sequence[Mapping[str, Any]], embeds: bool) -> None:
        self.model = model
        self._tensors = tensors
        self._embeds = embeds
        self.endpoint = "/v1/embeddings" if embeds else f"/v2/models/{model}/infer"

    @classmethod
    def of(cls, server: _Server, model: str, source: Path) -> _Asking:
        """Return how a model is asked with the rows of a file; raises CommandRefused if the server has none of that
        name."""
        name = quote(model, safe="")
        described = server.ask("GET", f"/v2/models/{name}")
        embeds = True
        try:
            server.ask("GET", f"/v1/models/{name}")
        except CommandRefused:
            embeds = False
        if embeds and source.suffix == ".jsonl":  # which may have bodies of infer requests
            first = next(iter(_json_rows(source)), ("", None))[1]
            embeds = isinstance(first, str) or (isinstance(first, dict) and first.get("url") == "/v1/embeddings")
        return cls(model, described["inputs"], embeds)

    def lines(self, source: Path) -> Iterator[bytes]:
        """Yield the lines of a batch; raises ValueError for a row that cannot be sent."""
        for name, row in _rows(source):
            if isinstance(row, dict) and "custom_id" in row:
                line = row
            else:
                line = {"custom_id": name, "method": "POST", "url": self.endpoint}
                try:
                    line["body"] = self._body(row)
                except ValueError as error:
                    raise ValueError(f"{source}, {name}: {error}") from None
            yield json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    def _body(self, row: Any) -> dict[str, Any]:
        if isinstance(row, dict):
            return row
        if self._embeds:
            row = row.decode() if isinstance(row, bytes) else row
            if not isinstance(row, str):
                raise ValueError(f"{self.model} takes texts")
            return {"model": self.model, "input": row}
        if len(self._tensors) != 1:
            raise ValueError(f"{self.model} takes {len(self._tensors)} inputs: send bodies of infer requests")
        [tensor] = self._tensors
        as_base64 = isinstance(row, bytes)
        data = [base64.b64encode(row).decode()] if as_base64 else list(_flat(row))
        shape = [int(size) for size in tensor["shape"][1:]]
        if min(shape, default=1) < 0:
            shape = _shape(row)
        if (tensor["datatype"] == "BYTES") != all(isinstance(value, str) for value in data):
            raise ValueError(f"{self.model} takes {'texts' if tensor['datatype'] == 'BYTES' else 'numbers'}")
        found = {"name": tensor["name"], "shape": [1, *shape], "datatype": tensor["datatype"], "data": data}
        return {"inputs": [found | {"parameters": {"content_type": "base64"}} if as_base64 else found]}


def _flat(row: Any) -> Iterator[Any]:
    if isinstance(row, list):
        for item in row:
            yield from _flat(item)
    else:
        yield row


def _shape(row: Any) -> list[int]:
    shape = []
    while isinstance(row, list):
        shape.append(len(row))
        row = row[0] if row else None
    return shape or [1]


def _rows(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file with the `custom_id` of each: its number, from 1 on.  Of a folder, the contents and
    names of its files."""
    if source.is_dir():
        for path in _files(source):
            yield path.name, path.read_bytes()
    elif source.suffix == ".npy":
        import numpy as np

        for number, row in enumerate(np.load(source, mmap_mode="r", allow_pickle=False), 1):
            yield f"row-{number}", row.tolist()
    elif source.suffix == ".txt":
        with open(source, encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield f"row-{number}", text.rstrip("\n")
    else:
        yield from _json_rows(source)


def _json_rows(source: Path) -> Iterator[tuple[str, Any]]:
    with open(source, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                try:
                    yield f"row-{number}", json.loads(text)
                except ValueError as error:
                    raise ValueError(f"{source}, line {number} is not JSON: {error}") from None


def _wait(server: _Server, batch: dict[str, Any], sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Show a batch until it has ended; return it.  A server that does not answer is asked again."""
    terminal = sys.stderr.isatty()
    began_s = shown_s = time.monotonic()
    said = plan = ""
    while batch["status"] in _RUNNING:
        text = _progress(batch)
        now_s = time.monotonic()
        if terminal:
            line = f"\r\033[Kclover batch: {text}, {duration(now_s - began_s)}"
            print(line[: os.get_terminal_size(2).columns + 4], end="", file=sys.stderr, flush=True)
        elif text != said and (batch["clover"]["plan"] != plan or not said or now_s - shown_s >= _PIPE_S):
            _say(text)
            said, plan, shown_s = text, batch["clover"]["plan"], now_s
        sleep(_POLL_S)
        try:
            batch = server.ask("GET", f"/v1/batches/{batch['id']}")
        except Unreachable as error:
            if not said.startswith("the server"):
                _say(f"{error}; it is asked again")
            said = "the server is away"
        except CommandRefused as error:
            if error.status not in (429, 503):
                raise
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return batch


def _write(server: _Server, batch: Mapping[str, Any], output: Path) -> None:
    """Write the answers, those of rows that failed after the others."""
    part = output.with_name(f"{output.name}.part")
    with open(part, "wb") as file:
        for name in ("output_file_id", "error_file_id"):
            if batch[name]:
                server.download(batch[name], file)
    os.replace(part, output)
