"""What the fuzzers found, each pinned: the input, and what it comes to now.

1. A worker's frame whose JSON is no UTF-8, or nested beyond what the reader takes, raised in the server's callback
   instead of ending that worker (`clover.worker.frames`).
2. The same bytes in a problem file, a trace, a profile, a rollout's record, a report, an answer of the planner's
   process or the configuration of a load request were a traceback instead of an error with a way out; so were a TOML
   file nested deeply, and one with a number of thousands of digits.
3. A ledger with one flipped bit in its version raised IndexError; in the text of its schema, UnicodeDecodeError; in a
   row, it gave nothing for a number.  The server then tried the file again for good, and never set it aside.
4. A trace with control characters in the name of a zone, and a family with such in a step's tensor, put them into the
   error text, and so on the terminal.
5. `Host: localhost:` (RFC 9110 4.2.3: a port may be empty) was refused.
6. A tab in the schema of a damaged ledger stood in the error text as it was.
7. Control characters of `listen.host`, and of the paths of files that are missing, stood in the error text of a
   configuration.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clover import families
from clover.carbon.layouts import parse_table
from clover.control.solver.protocol import unpack
from clover.errors import BadRequest, ConfigError, LedgerError, ProfileError, WorkerError
from clover.profiles import ProfileStore
from clover.report.checking import UnreadableReport, _decode
from clover.research.problem.file import parse
from clover.research.simulate.families import _of_file
from clover.server.loading import Loading
from clover.settings import load
from clover.telemetry.ledger import files
from clover.telemetry.ledger.store import LedgerBatch, LedgerReader, LedgerWriter, RunStart
from clover.telemetry.ledger.writing import LedgerThread
from clover.types import FamilyProfile
from clover.worker import frames
from tests.support.family_folder import write
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_family
from tests.support.ledgers import LedgerScene, write_ledger

NO_UTF_8 = b'{"schema":"\xff"}'
DEEP = b"[" * 100_000
DEEP_FIELD = b'{"a":' * 100_000


def profile(tmp_path: Path, data: bytes) -> None:
    store = ProfileStore(tmp_path)
    path = store.path("a", "k")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    store.get("a", "k")


def file_of_simulation(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(data)
    _of_file(path, ())


READERS: dict[str, tuple[Callable[[Path, bytes], Any], type[Exception]]] = {
    "a worker's frame": (lambda folder, data: frames.decode(data, frames.WorkerState), WorkerError),
    "the zygote's frame": (lambda folder, data: frames.decode(data, frames.Spawned), WorkerError),
    "a problem file": (lambda folder, data: parse(data), ConfigError),
    "a trace": (lambda folder, data: parse_table(data), ConfigError),
    "a profile": (profile, ProfileError),
    "a profile to simulate": (file_of_simulation, ConfigError),
    "a report": (lambda folder, data: _decode(data), UnreadableReport),
    "an answer of the planner": (lambda folder, data: unpack(data, FamilyProfile), ValueError),
}


@pytest.mark.parametrize(
    "data", [NO_UTF_8, DEEP, DEEP_FIELD, b"", b"\0"], ids=["no UTF-8", "deep", "deep field", "", "NUL"]
)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_json_is_an_error_with_words(reader: str, data: bytes, tmp_path: Path) -> None:
    read, error = READERS[reader]
    with pytest.raises(error):
        read(tmp_path, data)


@pytest.mark.parametrize("config", ["[" * 60_000, '{"a":' * 10_000, "{", "\ud800"])
def test_a_load_request_with_a_configuration_that_is_no_json(config: str) -> None:
    loading: Any = object.__new__(Loading)
    with pytest.raises(BadRequest, match="not JSON"):
        asyncio.run(Loading.load(loading, SimpleNamespace(name="a"), config))  # type: ignore[arg-type]


TOML = {
    "deep": "a = " + "[" * 10_000,
    "deep tables": "a = " + "{b = " * 10_000,
    "deep keys": "[" + "a." * 20_000 + "a]",
    "digits": "port = " + "9" * 5_000,
    "a date that is none": "a = 1979-13-40",
}


@pytest.mark.parametrize("case", TOML)
def test_a_file_that_is_no_toml(case: str, tmp_path: Path) -> None:
    path = tmp_path / "clover.toml"
    path.write_text(TOML[case])
    with pytest.raises(ConfigError, match=r"clover\.toml"):
        load([str(path)], {})
    folder = write(tmp_path / "family", TOML[case])
    with pytest.raises(ConfigError, match=r"family\.toml"):
        families.load_family(str(folder))


def test_control_characters_stay_out_of_error_texts(tmp_path: Path) -> None:
    header = "Datetime (UTC),Zone id,Carbon intensity gCO₂eq/kWh (direct)\n"
    rows = "2026-03-26T21:00Z,\x1b[31mDE,1\n2026-03-26T22:00Z,FR,1\n"
    with pytest.raises(ConfigError) as caught:
        parse_table((header + rows).encode())
    assert str(caught.value).isprintable()
    assert "several zones" in str(caught.value)


# --- ledgers ----------------------------------------------------------------------------------------------------------


def damaged(path: Path, change: Callable[[bytearray], None]) -> Path:
    """Write a ledger and change its bytes."""
    write_ledger(path, LedgerScene(days=0.02, models=("a",), tenants=("",), slices=("1c@0",)))
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def negative_version(data: bytearray) -> None:
    data[60:64] = b"\xff\xff\xff\xfe"  # the user version in the header


def schema_that_is_no_text(data: bytearray) -> None:
    at = data.index(b"CREATE TABLE")
    data[at : at + 9] = b"\xffREATE \xfe\xff"


@pytest.mark.parametrize("change", [negative_version, schema_that_is_no_text])
def test_a_damaged_ledger_is_said_to_be_and_set_aside(change: Callable[[bytearray], None], tmp_path: Path) -> None:
    path = damaged(tmp_path / "ledger.sqlite", change)
    with pytest.raises(LedgerError, match="cannot be read"):
        LedgerReader(path)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        LedgerWriter(path)
    assert files.reason_of(caught.value) == "damaged"


def test_a_row_with_nothing_for_a_number_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    write_ledger(path, LedgerScene(days=0.02, models=("a",), tenants=("",), slices=("1c@0",)))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    connection.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE events SET summary = NULL")
        connection.execute("UPDATE lines SET joules_uj = NULL")
    connection.close()
    with LedgerReader(path) as reader:
        with pytest.raises(LedgerError, match="damaged"):
            reader.events()
        with pytest.raises(LedgerError, match="damaged"):
            reader.lines()
        with pytest.raises(LedgerError, match="damaged"):
            reader.sums()


def test_sums_that_cannot_be_read_set_a_ledger_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    write_ledger(path, LedgerScene(days=0.02, models=("a",), tenants=("",), slices=("1c@0",)))
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO meta VALUES ('forgotten', '[1')")
    connection.close()
    ledger = LedgerThread(path, RunStart(2e9, "1", "box", 1, "d", "{}"))
    ledger.write(LedgerBatch(1, 2e9))
    assert (ledger.status.state, ledger.status.failures["damaged"]) == ("writing", 1)
    assert (tmp_path / ledger.status.set_aside).exists()
    ledger.end()
    with LedgerReader(path) as reader:
        assert [run.started for run in reader.runs()] == [2e9]


def a_control_character(data: bytearray) -> None:
    at = data.index(b"CREATE TABLE")
    data[at + 13 : at + 14] = b"\x04"


def a_tab(data: bytearray) -> None:
    at = data.index(b"INTEGER NOT NULL")
    data[at : at + 16] = b"INTEGER \tOT NULL"


@pytest.mark.parametrize("change", [a_control_character, a_tab])
def test_what_a_damaged_schema_holds_does_not_reach_the_terminal(
    change: Callable[[bytearray], None], tmp_path: Path
) -> None:
    path = damaged(tmp_path / "ledger.sqlite", change)
    with pytest.raises(LedgerError) as caught:
        LedgerReader(path)
    assert str(caught.value).isprintable()


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[listen]\nhost = "0\\t"\n',
        '[listen]\nhost = "0\\u001b[2J"\n',
        '[listen]\ntls_cert = "a\\u0007b"\ntls_key = "c"\n',
        '[listen]\n"\\u001b]0;x" = 1\n',
    ],
)
def test_what_a_configuration_holds_does_not_reach_the_terminal(text: str, tmp_path: Path) -> None:
    path = tmp_path / "clover.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([str(path)], {})
    assert str(caught.value).isprintable()


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_a_host_with_an_empty_port_is_that_host() -> None:
    d = Driver(FakeView(FakeModel(echo_family())))
    for host, status in ((b"localhost:", 200), (b"[::1]:", 200), (b"evil.example:", 403), (b":", 400), (b":80", 400)):
        (answer,) = d.send(b"GET /v2 HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert answer.status == status, host
        d.connect()
