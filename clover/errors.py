"""What can go wrong, as a few classes.

Every error that a client may see carries its HTTP status.  Messages say what to do; they never hold paths, addresses or
another request's data, because the HTTP layer passes the text of a `RequestError` on.
"""

from __future__ import annotations

import errno
import os
import sys


def not_installed(error: ImportError) -> str:
    """Return one line for an `error` met while a command was imported: a package that is missing, or kernels that were
    not built; empty if it is of another kind."""
    if error.name == "clover._native":
        return str(error)
    if not isinstance(error, ModuleNotFoundError):
        return ""
    name = (error.name or "").partition(".")[0]
    if name in ("", "clover"):
        return ""
    return (
        f"{name} is not installed for {sys.executable}: in the clone, `make serve` sets up .venv once; then run "
        ".venv/bin/python, or `. .venv/bin/activate` first"
    )


def untrusted(reason: str) -> str:
    """Return the remedy to append to `reason`, a TLS error, if the server's certificate is untrusted; else ""."""
    if "CERTIFICATE_VERIFY_FAILED" not in reason or "mismatch" in reason:  # a mismatch: another host's
        return ""
    return "; name the server's certificate, or its authority's, with --cacert FILE (in a Client: cacert)"


def no_certificate(file: str | os.PathLike[str], error: OSError) -> str:
    """Return why a file of certificates to trust cannot be used."""
    why = "it holds no certificate in PEM form" if "X509" in str(error) or not error.strerror else error.strerror
    return f"cannot read the certificate {os.fspath(file)}: {why}"


_OUT_OF_MEMORY = (
    *("out of memory", "can't allocate", "cannot allocate", "not enough memory", "bad_alloc", "bad alloc"),
    *("memoryerror", "status_alloc_failed", "does not fit into"),
)


def says_out_of_memory(text: str) -> bool:
    """Return whether the text of an error says that memory ran out, which frameworks say only in their texts."""
    lowered = text.lower()
    return any(words in lowered for words in _OUT_OF_MEMORY)


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error`, or a cause of it, says that memory ran out."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if says_out_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
        seen += 1
    return False


_LAUNCH_FAILED = ("cuda error 719", "unspecified launch failure")


def says_launch_failed(text: str) -> bool:
    """Return whether the text of a worker's end is CUDA's error 719: a kernel failed for a reason that is not known,
    which may be the rows or the GPU."""
    lowered = text.lower()
    return any(words in lowered for words in _LAUNCH_FAILED)


class CloverError(Exception):
    """Base of every error Clover raises on purpose."""


class ConfigError(CloverError):
    """The configuration (file, environment, command line or argument) cannot be used.  Exit code 2."""


class StartError(CloverError):
    """The server cannot start: a port is taken, a device is missing, a model does not load.  Exit code 3."""


class ProfileError(CloverError):
    """A profile is missing, stale or cannot be measured."""


class DeviceError(CloverError):
    """A device refused a layout, an instance or a reading."""


class DeviceLost(DeviceError):
    """A GPU does not answer any more: its capacity is gone until it comes back, and nothing it held can be changed."""


class WorkerError(CloverError):
    """A worker process died, refused or did not answer in time."""


class WorkerLostInStart(WorkerError):
    """A worker that was to hold several variants died, hung or broke before it was ready, and any of them may be to
    blame.  `hung`: it took too long."""

    def __init__(self, message: str, *, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


class PlanError(CloverError):
    """No plan satisfies the constraints, or a transition failed and was rolled back."""


class PolicyFault(PlanError):
    """A policy raised what no policy should: a fault of its code, whatever the load and the targets are."""


class CarbonError(CloverError):
    """A carbon-intensity source gave no usable reading.

    `kind` says in a word what failed, for metrics; `status` is the provider's HTTP status if it answered with an error,
    else 0.  `retry_after_s`: for how long the provider asks to be left alone (0: it does not say).
    """

    def __init__(self, message: str, *, kind: str = "answer", status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def refused(self) -> bool:
        """Whether the same request would be refused again: its key, its zone or its address is wrong."""
        return self.status in (400, 401, 403, 404, 422)

    @property
    def unusable(self) -> bool:
        """Whether the provider answered, but with nothing that can be used."""
        return self.kind in ("answer", "implausible", "old")


class LedgerError(CloverError):
    """A ledger cannot be kept or read: it is none, is damaged, is another server's, or is of a later version."""


class RequestError(CloverError):
    """A request that ends without an answer of the model; `status` is its HTTP status."""

    status = 500

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(RequestError):
    """The request is malformed, or asks for what cannot be had."""

    status = 400


class NotFound(RequestError):
    """Unknown model, version or path."""

    status = 404


class Conflict(RequestError):
    """A change by an operator that would break a target of the server, and was not forced."""

    status = 409


class TooLarge(RequestError):
    """The request exceeds a limit in size."""

    status = 413


class Overloaded(RequestError):
    """The queue or the slab is full; `retry_after_s` says when to try again."""

    status = 429


class ModelFailed(RequestError):
    """The model raised an error, or returned outputs that do not match its declaration."""

    status = 500


class Unavailable(RequestError):
    """Not ready, draining, no capacity, or the request was in flight in two worker deaths (no Retry-After)."""

    status = 503


class NotImplementedHere(RequestError):
    """What is asked for is not done by this server."""

    status = 501


_SHORT = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})


def shortage(error: Exception) -> Unavailable | None:
    """Return what a client is answered if `error` says that this machine was short of memory or descriptors, which may
    be over when the request comes again; None for any other error."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORT):
        return Unavailable("the server is short of memory or descriptors", retry_after_s=1.0)
    return None


class DeadlineMissed(RequestError):
    """The deadline passed before there was an answer."""

    status = 504


class ClusterError(CloverError):
    """A cluster cannot do what was asked: a node, the ingress or Ray does not answer or refuses.  Exit code 3."""
