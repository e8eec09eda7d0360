"""The batch jobs of a server: the event loop's side of a `JobFolder`, which works in a thread of its own.

    store = BatchStore(folder, clock=grid.now)
    await store.open()                                  # or the first upload or job opens it
    upload = store.upload("", "rows.jsonl")
    upload.write(data)
    file = await upload.finish()
    job = await store.create("", file.id, "/v1/embeddings", window="24h", window_s=86400.0)
    rows = await store.next_rows(job.id, 32)
    await store.answered(job.id, [(row.number, 200, answer) for row in rows])

A server without batch jobs has no thread and no folder for them.  While another server has the folder, as the one whose
place this one takes, each call raises Unavailable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clover.cache import state_folder
from clover.config import BatchJobsConfig, ServerConfig
from clover.errors import BadRequest, Conflict, LedgerError, NotFound, Overloaded, RequestError, TooLarge, Unavailable
from clover.telemetry.ledger.files import reason_of, server_name
from clover.types import BatchFile, BatchJob, JobView, RowAnswer, WaitingRow
from clover.waiting.folder import JobFolder, model_of

log = logging.getLogger("clover.waiting")

T = TypeVar("T")

FOLDER = "batches"
DAY_S = 86_400.0
TICK_S = 1.0
RESERVE_BYTES = 64 << 20
"""What has to be free on the disk for a new file or job, so that answers of those that are there find room."""
MOST_KEPT = 10_000
"""Files of an owner, and jobs."""
MOST_UPLOADS = 16
"""Files that come at the same time."""
MOST_OF_OWNER = 4
"""Of these, those of one owner."""
BACKLOG_BYTES = 4 << 20
"""Bytes of an upload that wait for the disk before its connection is read no further."""
_SCANNED = 50
"""Lines that are taken from an input at once."""
_LINE_ROOM = 4096
"""What a line has beside the body of its request."""
_CANCEL_S = 10.0
"""How long a cancelled job waits for rows that are being computed."""
_RETRY_S = 10.0
"""How long no rows are lent after an answer could not be kept."""
_CLOSE_S = 5.0
_DRAIN_STEP_S = 0.01

_UNUSED: Callable[[str, str], str] = lambda endpoint, model: ""  # noqa: E731


class DiskFull(RequestError):
    """The disk has no room for a new file or job."""

    status = 507


class BatchStore:
    """Keeps batch jobs in `path`.  `clock` returns grid time (Unix seconds).  `check(endpoint, model)` returns why the
    model cannot be asked there, or an empty text.  `body_bytes` is the largest body of a row's request.

    `changed` is called when a job begins, ends or is cancelled.
    """

    def __init__(
        self,
        path: Path,
        config: BatchJobsConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        check: Callable[[str, str], str] = _UNUSED,
        body_bytes: int = 4 << 20,
    ) -> None:
        self.path = path
        self.changed: Callable[[], None] = lambda: None
        self.reason: Callable[[str], str] = lambda job_id: ""
        """Returns when the rows of a job are planned to run, and why, in words."""
        self.config = config or BatchJobsConfig()
        self.trouble = ""
        """Why the folder cannot be used, or its disk not be written; empty while all is well."""
        self._clock = clock
        self._monotonic = monotonic
        self._check = check
        self._line_bytes = body_bytes + _LINE_ROOM
        self._folder: JobFolder | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._opening: asyncio.Task[JobFolder] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._busy: set[str] = set()
        """Jobs that a task scans or ends."""
        self._cancelled_s: dict[str, float] = {}
        self._uploads: set[Upload] = set()
        self._answers: list[tuple[str, list[RowAnswer], asyncio.Future[None]]] = []
        self._recording = False
        self._full_until_s = -1.0
        self._order = 0
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def from_config(cls, config: ServerConfig, **named: Any) -> BatchStore:
        """Return the store of a server; its folder is in the state folder and has the ledger's name."""
        name = server_name(config.ledger.name, config.listen.host, config.listen.port)
        path = state_folder(config.state_dir) / FOLDER / name
        return cls(path, config.batch_jobs, body_bytes=config.limits.json_bytes, **named)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the folder if there is one, without waiting for it."""
        if (self.path / "jobs.db").exists():
            self._spawn(self._start())

    async def _start(self) -> None:
        """Open the folder once the server that has it lets it go."""
        while not self._closed:
            try:
                await self.open()
            except Unavailable:
                await asyncio.sleep(TICK_S)
            else:
                return

    @property
    def is_open(self) -> bool:
        """Whether the folder is open."""
        return self._folder is not None

    async def open(self) -> None:
        """Open the folder, which is made if it is missing, and go on with the jobs in it; raises Unavailable."""
        await self._opened()

    async def _opened(self) -> JobFolder:
        if self._folder is not None:
            return self._folder
        if self._closed:
            raise Unavailable("the server is shutting down")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(self._opening)
        finally:
            if self._opening is not None and self._opening.done():
                self._opening = None

    async def _open(self) -> JobFolder:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="clover-batches")
        try:
            folder = await asyncio.get_running_loop().run_in_executor(self._thread, JobFolder, self.path)
        except (OSError, sqlite3.Error, LedgerError) as error:
            raise self._failed(error) from error
        self._folder, self.trouble = folder, ""
        orders = [*(file.order for file in folder.files.values()), *(job.order for job in folder.jobs.values())]
        self._order = max(orders, default=0)
        self._ticking = asyncio.create_task(self._tick())
        self._resume()
        return folder

    def _failed(self, error: Exception) -> Unavailable:
        """Return what a client is answered, and log it once, if the folder cannot be opened."""
        reason = reason_of(error)
        words = str(error)
        if self.trouble != words:
            self.trouble = words
            level = logging.INFO if reason == "taken" else logging.WARNING
            log.log(level, "the batch jobs in %s cannot be used (%s): %s", self.path, reason, words)
        if reason == "taken":
            return Unavailable("another server has the batch jobs until it has ended", retry_after_s=5.0)
        return Unavailable("the batch jobs of this server cannot be read; its log says why", retry_after_s=60.0)

    async def close(self) -> None:
        """Let another server have the folder.  A disk that does not answer does not hold up the stop."""
        end_s = self._monotonic() + _CLOSE_S
        while self._recording and self._monotonic() < end_s:
            await asyncio.sleep(_DRAIN_STEP_S)
        self._closed = True
        for upload in list(self._uploads):
            upload.abort()
        tasks = [*self._tasks, *([self._ticking] if self._ticking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        thread, folder = self._thread, self._folder
        if thread is None:
            return
        if folder is not None:
            closing = asyncio.get_running_loop().run_in_executor(thread, folder.close)
            try:
                await asyncio.wait_for(asyncio.shield(closing), _CLOSE_S)
            except TimeoutError:
                log.warning("the batch jobs are not closed: their disk did not answer within %g s", _CLOSE_S)
        self._folder = None
        thread.shutdown(wait=False)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Do something in the thread."""
        assert self._thread is not None
        if self._closed:
            raise Unavailable("the server is shutting down")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments, **named))

    async def _change(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Do something in the thread that a client asked for; raises DiskFull or Unavailable if the disk fails."""
        try:
            return await self._run(work, *arguments, **named)
        except (OSError, sqlite3.Error) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> RequestError:
        """Return what a client is answered whose change could not be kept."""
        reason = reason_of(error)
        self._note(reason, error)
        if reason == "full":
            return DiskFull("the server's disk is full")
        return Unavailable("the server's disk does not take this; its log says why", retry_after_s=10.0)

    def _note(self, reason: str, error: Exception) -> None:
        """Log what the disk said, once."""
        if self.trouble != reason:
            self.trouble = reason
            log.warning("the batch jobs in %s cannot be written (%s): %s", self.path, reason, error)

    def _number(self) -> int:
        self._order += 1
        return self._order

    # --- time -----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tend()
            except Exception:
                log.exception("the batch jobs could not be looked after")

    async def tend(self) -> None:
        """End the jobs whose time is over, and delete what has been kept for long enough."""
        folder, now_s = self._folder, self._clock()
        if folder is None:
            return
        inputs = set()
        for job in list(folder.jobs.values()):
            if job.ended_s is None:
                inputs.add(job.input_file)
                self._attend(folder, job, now_s)
            elif now_s >= job.ended_s + self.config.days * DAY_S:
                await self._run(folder.remove_job, job.id)
        for file in list(folder.files.values()):
            if file.expires_s is not None and now_s >= file.expires_s and file.id not in inputs:
                await self._run(folder.remove_file, file.id)

    def _attend(self, folder: JobFolder, job: BatchJob, now_s: float) -> None:
        """Have a job that is open do its next step, if it is time for one."""
        if job.id in self._busy:
            return
        if job.status == "finalizing":
            self._end(job.id, job.ends)
        elif job.status == "validating":
            self._work(job.id, partial(self._scan, folder, job.id))
        elif job.status == "cancelling":
            waited_s = self._monotonic() - self._cancelled_s.get(job.id, -_CANCEL_S)
            if not folder.is_lent(job.id) or waited_s >= _CANCEL_S:
                self._end(job.id, "cancelled")
        elif job.completed + job.failed >= job.total:
            self._end(job.id, "completed")
        elif now_s >= job.deadline_s:
            self._end(job.id, "expired")

    def _resume(self) -> None:
        """Go on with what a server before this one began."""
        assert self._folder is not None
        for job in list(self._folder.jobs.values()):
            if job.ended_s is None:
                self._attend(self._folder, job, self._clock())
        self.changed()

    def _work(self, job_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a task work at a job, alone."""
        self._busy.add(job_id)

        async def alone() -> None:
            try:
                await work()
            except (OSError, sqlite3.Error) as error:
                self._note(reason_of(error), error)  # the next tick tries again
            except Unavailable:
                pass
            finally:
                self._busy.discard(job_id)

        self._spawn(alone())

    def _end(self, job_id: str, ends: str) -> None:
        self._work(job_id, partial(self._finish, job_id, ends))

    async def _finish(self, job_id: str, ends: str) -> None:
        folder = self._folder
        assert folder is not None
        job = folder.jobs[job_id]
        now_s = max(self._clock(), job.created_s)
        expires_s = job.expires_s if job.expires_s is not None else self.config.days * DAY_S
        order = self._number()
        self._number()
        while await self._run(folder.finish, job_id, ends, now_s, now_s + expires_s, order):
            pass
        self._cancelled_s.pop(job_id, None)
        self.changed()

    # --- files ----------------------------------------------------------------------------------------------------

    async def upload(self, owner: str, declared: int = 0) -> Upload:
        """Begin to receive a file of `declared` bytes (0: unknown) and return what takes it.  Raises Overloaded,
        TooLarge, DiskFull or Unavailable."""
        folder = await self._opened()
        left = self.left_bytes(owner)
        own = sum(upload.owner == owner for upload in self._uploads)
        if own >= MOST_OF_OWNER or len(self._uploads) >= MOST_UPLOADS:
            raise Overloaded(f"{MOST_OF_OWNER} files are received at the same time at most", retry_after_s=5.0)
        self._check_count(sum(file.owner == owner for file in folder.files.values()), "files")
        if declared > left:
            raise TooLarge(_no_room(self.config.bytes))
        upload = Upload(self, owner, _new_id("file-"), left)
        self._uploads.add(upload)
        try:
            await self._change(upload.begin, folder, declared)
        except BaseException:
            self._uploads.discard(upload)
            raise
        return upload

    def left_bytes(self, owner: str) -> int:
        """Return how many more bytes an owner may keep."""
        folder = self._folder
        assert folder is not None
        used = sum(file.size_bytes for file in list(folder.files.values()) if file.owner == owner)
        used += sum(upload.size for upload in self._uploads if upload.owner == owner)
        used += sum(job.output_bytes + job.error_bytes for job in self._open_jobs() if job.owner == owner)
        return max(0, self.config.bytes - used)

    @staticmethod
    def _check_count(count: int, what: str) -> None:
        if count >= MOST_KEPT:
            raise TooLarge(f"{MOST_KEPT} {what} are kept, which is the most: delete some, or wait until old ones are")

    async def files(self, owner: str | None) -> list[BatchFile]:
        """Return the files of an owner (None: all), the newest first."""
        folder = await self._opened()
        found = [file for file in list(folder.files.values()) if owner in (None, file.owner)]
        return sorted(found, key=lambda file: -file.order)

    async def file(self, owner: str | None, name: str) -> BatchFile:
        """Return a file; raises NotFound."""
        file = (await self._opened()).files.get(name)
        if file is None or owner not in (None, file.owner):
            raise NotFound("no file has that id")
        return file

    async def read(self, file: BatchFile, start: int, size: int) -> bytes:
        """Return up to `size` bytes of a file from `start` on; raises NotFound if it was deleted meanwhile."""
        try:
            return await self._run((await self._opened()).read, file.id, start, size)
        except FileNotFoundError:
            raise NotFound("no file has that id") from None

    async def delete(self, owner: str | None, name: str) -> None:
        """Delete a file; raises NotFound, or Conflict if a job still needs it."""
        file = await self.file(owner, name)
        folder = await self._opened()
        for job in self._open_jobs():
            if job.input_file == file.id:
                raise Conflict(f"{job.id} still needs this file: cancel it, or wait for its end")
        await self._change(folder.remove_file, name)

    # --- jobs -----------------------------------------------------------------------------------------------------

    def _open_jobs(self) -> list[BatchJob]:
        folder = self._folder
        return [] if folder is None else [job for job in list(folder.jobs.values()) if job.ended_s is None]

    async def create(
        self,
        owner: str,
        input_file: str,
        endpoint: str,
        *,
        window: str,
        window_s: float,
        carbon: str = "wait",
        metadata: dict[str, str] | None = None,
        output_s: float | None = None,
    ) -> BatchJob:
        """Begin a job over the lines of a file, which are read after this returns.  `output_s`: how long its answers
        are kept, seconds.  Raises NotFound, BadRequest, TooLarge, DiskFull or Unavailable."""
        folder = await self._opened()
        file = await self.file(owner, input_file)
        if file.purpose != "batch":
            raise BadRequest("input_file_id is that of a file with the purpose batch")
        if (model := model_of(endpoint)) and (reason := self._check(endpoint, model)):
            raise NotFound(reason)
        self._check_count(sum(job.owner == owner for job in folder.jobs.values()), "batches")
        now_s = self._clock()
        job = BatchJob(
            id=_new_id("batch_"),
            order=self._number(),
            owner=owner,
            endpoint=endpoint,
            model=model,
            carbon="now" if carbon == "now" else "wait",
            window=window,
            input_file=file.id,
            output_file=_new_id("file-"),
            error_file=_new_id("file-"),
            metadata=metadata or {},
            status="validating",
            created_s=now_s,
            deadline_s=now_s + window_s,
            expires_s=output_s,
        )
        await self._change(self._add_job, folder, job)
        self._attend(folder, job, now_s)
        return job

    def _add_job(self, folder: JobFolder, job: BatchJob) -> None:
        check_room(folder, 0)
        folder.add_job(job)

    async def _scan(self, folder: JobFolder, job_id: str) -> None:
        """Take the lines of a job's input, and have it run, or refuse it."""
        job = folder.jobs[job_id]
        others = [other for other in self._open_jobs() if other.owner == job.owner and other.id != job_id]
        most = max(0, self.config.rows - sum(other.total - other.completed - other.failed for other in others))
        began_s = self._monotonic()
        while await self._run(folder.scan, job_id, _SCANNED, self._line_bytes, most):
            took_s = self._monotonic() - began_s
            await asyncio.sleep(3.0 * took_s)  # live requests have the interpreter for most of the time
            began_s = self._monotonic()
        job, now_s = folder.jobs[job_id], max(self._clock(), job.created_s)
        error = None
        if not job.errors and (reason := self._check(job.endpoint, job.model)):
            error = {"code": "model_not_found", "message": reason, "param": "body.model", "line": None}
        if job.errors or error is not None:
            while await self._run(folder.fail, job_id, error, now_s):
                pass
        elif job_id in self._cancelled_s:
            await self._run(folder.cancel, job_id, now_s)
        else:
            await self._run(folder.begin, job_id, now_s)
        self.changed()

    async def jobs(self, owner: str | None) -> list[BatchJob]:
        """Return the jobs of an owner (None: all), the newest first."""
        folder = await self._opened()
        found = [job for job in list(folder.jobs.values()) if owner in (None, job.owner)]
        return sorted(found, key=lambda job: -job.order)

    async def job(self, owner: str | None, job_id: str) -> BatchJob:
        """Return a job; raises NotFound."""
        job = (await self._opened()).jobs.get(job_id)
        if job is None or owner not in (None, job.owner):
            raise NotFound("no batch has that id")
        return job

    async def cancel(self, owner: str | None, job_id: str) -> BatchJob:
        """Lend no more rows of a job, and end it once those that are being computed have their answers; return it.
        Raises NotFound, or Conflict if it has ended."""
        job = await self.job(owner, job_id)
        folder = await self._opened()
        if job.status == "cancelling":
            return job
        if job.status not in ("validating", "in_progress"):
            raise Conflict(f"a batch that is {job.status} cannot be cancelled")
        self._cancelled_s[job_id] = self._monotonic()
        if job.status == "in_progress":
            await self._change(folder.cancel, job_id, max(self._clock(), job.created_s))
        job = folder.jobs[job_id]
        self._attend(folder, job, self._clock())
        self.changed()
        return job

    @property
    def repeated_rows(self) -> int:
        """Rows of the jobs that are kept that were computed more than once."""
        folder = self._folder
        return 0 if folder is None else sum(job.repeated for job in list(folder.jobs.values()))

    # --- rows -----------------------------------------------------------------------------------------------------

    def open_jobs(self) -> list[JobView]:
        """See `WaitingRows.open_jobs`."""
        return [
            JobView(
                job.id,
                job.model,
                job.owner,
                job.total - job.completed - job.failed,
                job.deadline_s,
                job.carbon,
                job.created_s,
                job.endpoint,
                job.total,
            )
            for job in self._open_jobs()
            if job.status == "in_progress" and job.total > job.completed + job.failed and job.id not in self._busy
        ]

    async def next_rows(self, job_id: str, count: int) -> list[WaitingRow]:
        """See `WaitingRows.next_rows`."""
        folder = self._folder
        if folder is None or self._closed or self._monotonic() < self._full_until_s or job_id in self._busy:
            return []
        try:
            return await self._run(folder.lend, job_id, count)
        except (FileNotFoundError, msgspec.MsgspecError) as error:
            self._note("input", error)  # somebody removed or changed it: these rows expire
            return []
        except (OSError, sqlite3.Error) as error:
            self._pause(error)
            return []

    def give_back(self, job_id: str, numbers: Sequence[int]) -> None:
        """See `WaitingRows.give_back`."""
        if self._folder is not None and self._thread is not None and not self._closed:
            self._thread.submit(self._folder.take_back, job_id, list(numbers))

    async def repeated(self, job_id: str, rows: int) -> None:
        """See `WaitingRows.repeated`."""
        if self._folder is not None:
            await self._run(self._folder.add_repeated, job_id, rows)

    async def answered(self, job_id: str, answers: Sequence[RowAnswer | tuple[int, int, bytes]]) -> None:
        """See `WaitingRows.answered`."""
        if self._folder is None or self._closed:
            raise Unavailable("the batch jobs are closed")
        done = asyncio.get_running_loop().create_future()
        self._answers.append((job_id, [RowAnswer(*answer) for answer in answers], done))
        if not self._recording:
            self._recording = True
            self._spawn(self._record())
        await done

    async def _record(self) -> None:
        """Keep the answers that wait, all of them in one transaction, until none waits."""
        try:
            while self._answers:
                waiting, self._answers = self._answers, []
                try:
                    await self._keep([(job_id, answers) for job_id, answers, _ in waiting])
                except BaseException:
                    for _, _, done in waiting:
                        done.cancel()
                    raise
                for _, _, done in waiting:
                    if not done.done():
                        done.set_result(None)
        finally:
            self._recording = False

    async def _keep(self, answers: list[tuple[str, list[RowAnswer]]]) -> None:
        folder = self._folder
        assert folder is not None
        try:
            await self._run(folder.record, answers)
        except (OSError, sqlite3.Error) as error:
            self._pause(error)
            for job_id, some in answers:
                await self._run(folder.take_back, job_id, [answer.number for answer in some], computed=True)
            return
        self.trouble = ""
        for job_id in {job_id for job_id, _ in answers}:
            job = folder.jobs.get(job_id)
            if job is not None and job.ended_s is None:
                self._attend(folder, job, self._clock())

    def _pause(self, error: Exception) -> None:
        """Lend no rows for a while, as their answers could not be kept."""
        self._note(reason_of(error), error)
        self._full_until_s = self._monotonic() + _RETRY_S

    def forget_upload(self, upload: Upload) -> None:
        """Count an upload no more."""
        self._uploads.discard(upload)


class Upload:
    """A file that is being received.  `write` takes its bytes and never waits; `drained` is called when some are on the
    disk and it is not `full`."""

    def __init__(self, store: BatchStore, owner: str, name: str, most_bytes: int) -> None:
        self.owner = owner
        self.name = name
        self.size = 0
        self.drained: Callable[[], None] = lambda: None
        self._store = store
        self._most_bytes = most_bytes
        self._folder: JobFolder | None = None
        self._fd = -1
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._error: RequestError | None = None
        self._ended = False

    def begin(self, folder: JobFolder, declared: int) -> None:
        """Make the file, in the thread."""
        check_room(folder, declared)
        self._fd = folder.open_part(self.name)
        self._folder = folder

    @property
    def error(self) -> RequestError | None:
        """What went wrong so far."""
        return self._error

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not yet on the disk."""
        return self._waiting_bytes

    @property
    def full(self) -> bool:
        """Whether no more should be written until `drained`."""
        return self._waiting_bytes > BACKLOG_BYTES

    def write(self, data: bytes) -> None:
        """Take the next bytes.  What goes wrong, `finish` raises."""
        if self._error is not None or self._ended:
            return
        self.size += len(data)
        if self.size > self._most_bytes:
            self._error = TooLarge(_no_room(self._store.config.bytes))
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._writing is None and self._waiting_bytes >= 1 << 18:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                data, self._waiting = b"".join(self._waiting), []
                await self._store._run(_write_all, self._fd, data)
                self._waiting_bytes -= len(data)
                if not self.full:
                    self.drained()
        except (OSError, Unavailable) as error:
            self._error = self._store._refusal(error) if isinstance(error, OSError) else error
            self._waiting.clear()
            self._waiting_bytes = 0
            self.drained()
        finally:
            self._writing = None

    async def finish(self, name: str, purpose: str = "batch", expires_s: float | None = None) -> BatchFile:
        """Keep the file, `expires_s` seconds long or as long as is configured; return it.  Raises RequestError, and
        keeps nothing then."""
        try:
            while self._writing is not None or (self._waiting and self._error is None):
                if self._writing is None:
                    self._writing = asyncio.create_task(self._write())
                await asyncio.shield(self._writing)
            if self._error is not None:
                raise self._error
            store, folder = self._store, self._folder
            assert folder is not None
            now_s = store._clock()
            file = BatchFile(
                id=self.name,
                order=store._number(),
                owner=self.owner,
                name=name,
                purpose=purpose,
                size_bytes=self.size,
                created_s=now_s,
                expires_s=now_s + (expires_s if expires_s is not None else store.config.days * DAY_S),
            )
            fd, self._fd = self._fd, -1
            await store._change(folder.add_file, file, fd)
            return file
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the file, unless it is kept."""
        if self._ended:
            return
        self._ended = True
        self._store.forget_upload(self)
        self._waiting.clear()
        fd, self._fd = self._fd, -1
        thread = self._store._thread
        if fd >= 0 and self._folder is not None and thread is not None:
            thread.submit(self._folder.drop_part, self.name, fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def check_room(folder: JobFolder, size: int) -> None:
    """Raise DiskFull if the disk has no room for `size` bytes beside `RESERVE_BYTES`."""
    if folder.free_bytes() < size + RESERVE_BYTES:
        raise DiskFull("the server's disk is nearly full: it takes no new files and batches until there is room")


def _no_room(most_bytes: int) -> str:
    return f"all your files would take more than {most_bytes} bytes (batch_jobs.bytes): delete some"


def _new_id(start: str) -> str:
    return start + os.urandom(12).hex()
