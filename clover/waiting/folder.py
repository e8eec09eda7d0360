"""The batch jobs of a server on the disk: one folder with a SQLite file and JSONL files.  Use it from one thread.

    jobs.db         jobs, files, and the rows that have no answer yet
    ID.jsonl        a file of the files API: an input as it came, or the answers of a job
    ID.part         an input that is still coming

**Exactly once.**  A row leaves the table in the transaction that records how long the files of answers have become, and
that transaction is committed after the answer's line is on the disk.  What a file has beyond its recorded length is the
rest of a transaction that never was: the next line is written over it, and opening the folder cuts it off.  So after a
kill each row either has its line, or is in the table.

**Computed twice.**  A job counts the rows that were lent (`BatchJob.handed`), without waiting for the disk: a kill of
the process loses no such count.  What was lent and has no answer when the folder is opened is lent again, and counted
as repeated: so many rows were computed twice at most.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from clover.errors import LedgerError
from clover.telemetry.ledger.files import LedgerLock, check_folder
from clover.types import BatchFile, BatchJob, RowAnswer, WaitingRow

VERSION = 1
_SCHEMA = f"""
CREATE TABLE files (id TEXT PRIMARY KEY, doc BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (id TEXT PRIMARY KEY, doc BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    job INTEGER NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, start INTEGER NOT NULL,
    size INTEGER NOT NULL, PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX ids ON rows (job, custom_id);
PRAGMA user_version = {VERSION};
"""
_SLICE = 500
"""Rows that are removed in one transaction."""
_ID_CHARACTERS = 512
_MOST_ERRORS = 20
_OPEN = ("in_progress", "cancelling")
_ENDINGS = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: its batch was cancelled."),
}


class _Line(msgspec.Struct):
    """A line of an input file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    """What is read of the body of a request before it runs."""

    model: str


_LINE = msgspec.json.Decoder(_Line)
_BODY = msgspec.json.Decoder(_Body)


@dataclass
class _Lent:
    """Which rows of a job are lent: those from `ahead` on never were, and `returned` are to be lent again."""

    ahead: int = 0
    numbers: set[int] = field(default_factory=set)
    returned: list[int] = field(default_factory=list)


class JobFolder:
    """Opens the folder `path`, which is made if it is missing, and keeps other servers off it until `close`.

    `files` and `jobs` are all there are, by id; other threads may read these.  Raises LedgerError, OSError or
    sqlite3.Error if the folder cannot be used, or is another server's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, BatchFile] = {}
        self.jobs: dict[str, BatchJob] = {}
        self._lent: dict[str, _Lent] = {}
        check_folder(path)
        self._lock = LedgerLock(path / "jobs.db")
        try:
            os.close(os.open(path / "jobs.db", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path / "jobs.db", isolation_level=None, check_same_thread=False)
        except BaseException:
            self._lock.close()
            raise
        try:
            for pragma in ("journal_mode = WAL", "trusted_schema = OFF", f"journal_size_limit = {4 << 20}"):
                self._db.execute(f"PRAGMA {pragma}")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise LedgerError(f"the batch jobs are of version {version}, which this version of Clover cannot read")
            if not version:
                self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            self._sync(True)
            self._load()
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files and let other servers have the folder."""
        self._db.close()
        self._lock.close()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        files = [msgspec.json.decode(doc, type=BatchFile) for (doc,) in self._db.execute("SELECT doc FROM files")]
        self.files.update((item.id, item) for item in sorted(files, key=lambda item: item.order))
        jobs = [msgspec.json.decode(doc, type=BatchJob) for (doc,) in self._db.execute("SELECT doc FROM jobs")]
        self.jobs.update((item.id, item) for item in sorted(jobs, key=lambda item: item.order))

    def _recover(self) -> None:
        """Cut off what was written and not recorded, and count the rows whose answers a kill took."""
        kept = {f"{name}.jsonl" for name in self.files}
        for job in list(self.jobs.values()):
            if job.ended_s is not None:
                continue
            for name, size in ((job.output_file, job.output_bytes), (job.error_file, job.error_bytes)):
                kept.add(f"{name}.jsonl")
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(self._file(name), size)
            lost = job.handed - job.completed - job.failed
            if lost:
                answered = job.completed + job.failed
                self._save(msgspec.structs.replace(job, repeated=job.repeated + max(0, lost), handed=answered))
        for entry in self.path.iterdir():
            if entry.suffix == ".part" or (entry.suffix == ".jsonl" and entry.name not in kept):
                entry.unlink()

    # --- small things -------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def _sync(self, on: bool) -> None:
        """Have commits wait for the disk, or only outlast a kill of the process."""
        self._db.execute(f"PRAGMA synchronous = {'FULL' if on else 'OFF'}")

    @contextlib.contextmanager
    def _transaction(self, *, waits: bool = True) -> Iterator[None]:
        """Commit what the body does, or nothing of it; `waits`: for the disk."""
        if not waits:
            self._sync(False)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        finally:
            if not waits:
                self._sync(True)

    def _put(self, table: str, item: BatchFile | BatchJob) -> None:
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (item.id, msgspec.json.encode(item)))

    def _save(self, job: BatchJob) -> None:
        """Record a job as it is now."""
        with self._transaction():
            self._put("jobs", job)
        self.jobs[job.id] = job

    def free_bytes(self) -> int:
        """Return how many bytes the disk has left for this user."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    # --- files --------------------------------------------------------------------------------------------------------

    def open_part(self, name: str) -> int:
        """Begin the file `name`; return the descriptor that its bytes are written to."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path / f"{name}.part", flags, 0o600)

    def drop_part(self, name: str, fd: int) -> None:
        """Remove a file that did not come to its end."""
        os.close(fd)
        (self.path / f"{name}.part").unlink(missing_ok=True)

    def add_file(self, file: BatchFile, fd: int) -> None:
        """Keep a file whose bytes are all written to `fd`; raises OSError or sqlite3.Error, and drops it then."""
        part = self.path / f"{file.id}.part"
        try:
            os.fsync(fd)
            os.rename(part, self._file(file.id))
            self._sync_folder()
            with self._transaction():
                self._put("files", file)
        except BaseException:
            self._file(file.id).unlink(missing_ok=True)
            self.drop_part(file.id, fd)
            raise
        os.close(fd)
        self.files[file.id] = file

    def remove_file(self, name: str) -> None:
        """Delete a file."""
        with self._transaction():
            self._db.execute("DELETE FROM files WHERE id = ?", (name,))
        self.files.pop(name, None)
        self._file(name).unlink(missing_ok=True)

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return up to `size` bytes of a file from `start` on."""
        fd = os.open(self._file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, start)
        finally:
            os.close(fd)

    def _sync_folder(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- a job begins -------------------------------------------------------------------------------------------------

    def add_job(self, job: BatchJob) -> None:
        """Keep a new job, whose input is to be scanned."""
        self._save(job)

    def scan(self, job_id: str, lines: int, line_bytes: int, most_rows: int) -> bool:
        """Take up to `lines` further lines of a job's input into the table; return whether more are left.  What is
        wrong with them is in the job's `errors`.  A line has at most `line_bytes`, the job `most_rows`."""
        job = self.jobs[job_id]
        errors, total, at, number, model = list(job.errors), job.total, job.scanned_bytes, job.scanned_lines, job.model
        more = True
        with open(self._file(job.input_file), "rb") as file, self._transaction(waits=False):
            file.seek(at)
            for _ in range(lines):
                line = file.readline(line_bytes + 1)
                if not line or len(errors) >= _MOST_ERRORS:
                    more = False
                    break
                number += 1
                if line.strip():
                    fault = self._take_line(job, model, total, line, at, line_bytes)
                    if isinstance(fault, str):
                        total, model = total + 1, fault
                    else:
                        errors.append(fault | {"line": number})
                        more = fault["code"] != "line_too_long"
                        if not more:
                            break
                at += len(line)
                if total > most_rows:
                    errors.append(
                        _error("row_limit_exceeded", f"more than {most_rows} rows would wait (batch_jobs.rows)")
                    )
                    more = False
                    break
            if not more and not total and not errors:
                errors.append(_error("empty_file", "the file has no lines"))
            job = msgspec.structs.replace(
                job, total=total, scanned_bytes=at, scanned_lines=number, model=model, errors=tuple(errors)
            )
            self._put("jobs", job)
        self.jobs[job_id] = job
        return more

    def _take_line(
        self, job: BatchJob, model: str, number: int, text: bytes, at: int, line_bytes: int
    ) -> str | dict[str, Any]:
        """Put one line into the table, and return the model that it asks; or else what is wrong with it."""
        if len(text) > line_bytes:
            return _error("line_too_long", f"a line has at most {line_bytes} bytes")
        try:
            line = _LINE.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            names = "a line is a JSON object with custom_id, method, url and body"
            return _error("invalid_json_line", f"{names} ({str(error)[:200]})")
        if not 0 < len(line.custom_id) <= _ID_CHARACTERS or "\0" in line.custom_id:
            return _error("invalid_custom_id", f"custom_id has 1 to {_ID_CHARACTERS} characters", "custom_id")
        if line.method != "POST":
            return _error("invalid_method", "method is POST", "method")
        if line.url != job.endpoint:
            return _error("mismatched_url", f"url is the batch's endpoint, {job.endpoint}", "url")
        asked = model_of(job.endpoint)
        if not asked:
            try:
                asked = _BODY.decode(line.body).model
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return _error("invalid_body", "body is a JSON object with the name of a model", "body.model")
        elif not bytes(line.body).lstrip().startswith(b"{"):
            return _error("invalid_body", "body is a JSON object", "body")
        if model and asked != model:
            return _error("mismatched_model", f"all lines ask one model: {model} before", "body.model")
        try:
            row = (job.order, number, line.custom_id, at, len(text))
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            return _error("duplicate_custom_id", "custom_id is that of an earlier line", "custom_id")
        return asked

    def begin(self, job_id: str, at_s: float) -> None:
        """Have a job whose input is scanned run."""
        self._save(msgspec.structs.replace(self.jobs[job_id], status="in_progress", in_progress_s=at_s))

    def fail(self, job_id: str, error: dict[str, Any] | None, at_s: float) -> bool:
        """Refuse a job, for its `errors` or for `error`; return whether some of its rows are left, to go with the next
        call."""
        job = self.jobs[job_id]
        with self._transaction(waits=False):
            gone = self._db.execute(
                "DELETE FROM rows WHERE (job, number) IN (SELECT job, number FROM rows WHERE job = ? LIMIT ?)",
                (job.order, _SLICE),
            ).rowcount
        if gone == _SLICE:
            return True
        errors = (*job.errors, error) if error is not None else job.errors
        self._save(msgspec.structs.replace(job, status="failed", errors=errors, ended_s=at_s))
        return False

    # --- rows ---------------------------------------------------------------------------------------------------------

    def lend(self, job_id: str, count: int) -> list[WaitingRow]:
        """Lend up to `count` rows of a job that nobody has."""
        job = self.jobs.get(job_id)
        if job is None or job.status != "in_progress":
            return []
        lent = self._lent.setdefault(job_id, _Lent())
        columns = "SELECT number, custom_id, start, size FROM rows WHERE job = ? AND number"
        taken = [heapq.heappop(lent.returned) for _ in range(min(count, len(lent.returned)))]
        found: list[tuple[int, str, int, int]] = []
        for number in taken:
            found += self._db.execute(f"{columns} = ?", (job.order, number)).fetchall()
        if len(found) < count:
            query = f"{columns} >= ? ORDER BY number LIMIT ?"
            found += self._db.execute(query, (job.order, lent.ahead, count - len(found))).fetchall()
        if not found:
            return []
        try:
            rows = self._read_rows(job, found)
            job = msgspec.structs.replace(job, handed=job.handed + len(rows))
            with self._transaction(waits=False):
                self._put("jobs", job)
        except BaseException:
            for number in taken:
                heapq.heappush(lent.returned, number)
            raise
        self.jobs[job_id] = job
        lent.numbers.update(row.number for row in rows)
        lent.ahead = max(lent.ahead, found[-1][0] + 1)
        return rows

    def _read_rows(self, job: BatchJob, found: Sequence[tuple[int, str, int, int]]) -> list[WaitingRow]:
        fd = os.open(self._file(job.input_file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            bodies = [bytes(_LINE.decode(os.pread(fd, size, start)).body) for _, _, start, size in found]
        finally:
            os.close(fd)
        return [
            WaitingRow(job.id, number, custom_id, job.model, body)
            for (number, custom_id, _, _), body in zip(found, bodies, strict=True)
        ]

    def take_back(self, job_id: str, numbers: Sequence[int], *, computed: bool = False) -> None:
        """Lend these rows again; those that were `computed` are counted as repeated."""
        lent, job = self._lent.get(job_id), self.jobs.get(job_id)
        if lent is None or job is None:
            return
        back = lent.numbers & set(numbers)
        lent.numbers -= back
        for number in back:
            heapq.heappush(lent.returned, number)
        repeated = job.repeated + (len(back) if computed else 0)
        job = self.jobs[job_id] = msgspec.structs.replace(job, handed=job.handed - len(back), repeated=repeated)
        # If the disk is full, it is recorded with the next change of the job.
        with contextlib.suppress(OSError, sqlite3.Error), self._transaction(waits=False):
            self._put("jobs", job)

    def is_lent(self, job_id: str) -> bool:
        """Return whether some rows of a job are lent."""
        lent = self._lent.get(job_id)
        return lent is not None and bool(lent.numbers)

    def add_repeated(self, job_id: str, rows: int) -> None:
        """Count rows that were computed twice."""
        job = self.jobs.get(job_id)
        if job is not None:
            self._save(msgspec.structs.replace(job, repeated=job.repeated + rows))

    def record(self, answers: Sequence[tuple[str, Sequence[RowAnswer]]]) -> None:
        """Keep answers of rows, job by job, in one transaction.  Raises OSError or sqlite3.Error, and keeps none
        then."""
        changed: dict[str, BatchJob] = {}
        with self._transaction():
            for job_id, some in answers:
                job = changed.get(job_id) or self.jobs.get(job_id)
                if job is not None and job.status in _OPEN:
                    changed[job_id] = self._record(job, some)
            for job in changed.values():
                self._put("jobs", job)
        self.jobs.update(changed)
        for job_id, some in answers:
            lent = self._lent.get(job_id)
            if lent is not None:
                lent.numbers.difference_update(answer.number for answer in some)

    def _record(self, job: BatchJob, answers: Sequence[RowAnswer]) -> BatchJob:
        """Write the lines of answers, and take their rows out of the table; return the job as it is then."""
        good: list[bytes] = []
        bad: list[bytes] = []
        energy_j = carbon_mg = 0.0
        for answer in answers:
            key = job.order, answer.number
            row = self._db.execute("SELECT custom_id FROM rows WHERE job = ? AND number = ?", key).fetchone()
            if row is None:
                continue  # it was answered before
            self._db.execute("DELETE FROM rows WHERE job = ? AND number = ?", key)
            (good if answer.status < 400 else bad).append(answer_line(job.id, row[0], answer))
            if answer.receipt is not None:
                energy_j += answer.receipt.energy_j
                carbon_mg += answer.receipt.carbon_mg
        return msgspec.structs.replace(
            job,
            output_bytes=self._append(job.output_file, job.output_bytes, good),
            error_bytes=self._append(job.error_file, job.error_bytes, bad),
            completed=job.completed + len(good),
            failed=job.failed + len(bad),
            energy_j=job.energy_j + energy_j,
            carbon_mg=job.carbon_mg + carbon_mg,
        )

    def _append(self, name: str, size: int, lines: Sequence[bytes]) -> int:
        """Write lines to a file that has `size` bytes, and wait for the disk; return how many it has then."""
        if not lines:
            return size
        data = memoryview(b"".join(lines))
        fd = os.open(self._file(name), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], size + done)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if not size:
            self._sync_folder()
        return size + len(data)

    # --- a job ends ---------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str, at_s: float) -> None:
        """Lend no more rows of a job."""
        self._save(msgspec.structs.replace(self.jobs[job_id], status="cancelling", cancelling_s=at_s))

    def finish(self, job_id: str, ends: str, at_s: float, expires_s: float | None, order: int) -> bool:
        """End a job that is to be `ends`: write a line for each row without an answer, some of them a call, then show
        its files of answers.  Return whether another call is needed."""
        job = self.jobs[job_id]
        if job.status != "finalizing":
            job = msgspec.structs.replace(job, status="finalizing", ends=ends, finalizing_s=at_s)
            self._save(job)
        columns = "SELECT number, custom_id FROM rows WHERE job = ? ORDER BY number LIMIT ?"
        rows = self._db.execute(columns, (job.order, _SLICE)).fetchall()
        if rows:
            code, message = _ENDINGS[job.ends]
            lines = [unanswered_line(job.id, number, custom_id, code, message) for number, custom_id in rows]
            with self._transaction():
                self._db.execute("DELETE FROM rows WHERE job = ? AND number <= ?", (job.order, rows[-1][0]))
                size = self._append(job.error_file, job.error_bytes, lines)
                job = msgspec.structs.replace(job, error_bytes=size, failed=job.failed + len(rows))
                self._put("jobs", job)
            self.jobs[job_id] = job
            return True
        files = [
            BatchFile(
                id=name,
                order=order + at,
                owner=job.owner,
                name=f"{job.id}_{what}.jsonl",
                purpose="batch_output",
                size_bytes=size,
                created_s=at_s,
                expires_s=expires_s,
            )
            for at, (name, what, size) in enumerate(
                ((job.output_file, "output", job.output_bytes), (job.error_file, "error", job.error_bytes))
            )
            if size
        ]
        job = msgspec.structs.replace(job, status=job.ends, ended_s=at_s)
        with self._transaction():
            for file in files:
                os.truncate(self._file(file.id), file.size_bytes)
                self._put("files", file)
            self._put("jobs", job)
        self.files.update((file.id, file) for file in files)
        self.jobs[job_id] = job
        self._lent.pop(job_id, None)
        return False

    def remove_job(self, job_id: str) -> None:
        """Forget a job that has ended."""
        with self._transaction():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        self.jobs.pop(job_id, None)


def model_of(endpoint: str) -> str:
    """Return the model that an endpoint names; empty for /v1/embeddings."""
    parts = endpoint.split("/")
    return parts[3] if endpoint.startswith("/v2/models/") else ""


def _error(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": None}


def _line_id(job_id: str, number: int) -> str:
    return f"batch_req_{job_id.removeprefix('batch_')}_{number}"


def answer_line(job_id: str, custom_id: str, answer: RowAnswer) -> bytes:
    """Return the line of an answer: OpenAI's, and with it `clover`, what the answer cost and the model's version."""
    name = _line_id(job_id, answer.number)
    body = answer.body.translate(None, b"\r\n")  # JSON has line ends between tokens only
    line: dict[str, Any] = {
        "id": name,
        "custom_id": custom_id,
        "response": {"status_code": answer.status, "request_id": name, "body": msgspec.Raw(body)},
        "error": None,
        "clover": {"version": answer.version, "receipt": _receipt(answer)},
    }
    return msgspec.json.encode(line) + b"\n"


def _receipt(answer: RowAnswer) -> Mapping[str, Any] | None:
    """Return the members of a receipt, as its header has them."""
    receipt = answer.receipt
    if receipt is None:
        return None
    return {
        "variant": receipt.variant,
        "accuracy": round(receipt.accuracy, 3),
        "energy_j": receipt.energy_j,
        "carbon_mg": receipt.carbon_mg,
        "method": receipt.method,
        "intensity": receipt.intensity_g_per_kwh,
        "intensity_method": receipt.intensity.known if receipt.intensity is not None else None,
        "pue": receipt.pue,
    }


def unanswered_line(job_id: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of a row that has no answer when its job ends."""
    error = {"code": code, "message": message}
    line = {"id": _line_id(job_id, number), "custom_id": custom_id, "response": None, "error": error}
    return msgspec.json.encode(line) + b"\n"
