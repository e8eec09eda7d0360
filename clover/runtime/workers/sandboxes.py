"""How the settings confine workers, and which of that this kernel supports."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clover.config import ServerConfig, WorkersConfig
from clover.errors import StartError
from clover.types import SandboxOrder
from clover.worker import landlock, sandbox, seccomp

log = logging.getLogger("clover.pool")


def order_of(workers: WorkersConfig, *, gpu: bool) -> SandboxOrder | None:
    """Return how a worker on a real GPU, or elsewhere, is to be confined; None if not at all."""
    if workers.sandbox == "off" or (gpu and workers.sandbox != "on"):
        return None
    return SandboxOrder(
        required=workers.sandbox == "on",
        read=tuple(map(_whole, workers.sandbox_read)),
        write=tuple(map(_whole, workers.sandbox_write)),
        processes=workers.sandbox_processes,
    )


def report(workers: WorkersConfig, *, gpu: bool) -> dict[str, Any]:
    """Return what is asked (`asked`), whether workers are confined by each part, and why not if they are not
    (`reason`), ready for JSON."""
    reason = ""
    if workers.sandbox == "off":
        reason = "workers.sandbox is off"
    elif gpu and workers.sandbox != "on":
        reason = 'workers on GPUs are confined with workers.sandbox = "on" only'
    elif lacking := sandbox.missing():
        reason = f"this kernel has no {lacking}"
    asked = order_of(workers, gpu=gpu) is not None
    return {
        "asked": workers.sandbox,
        "landlock": asked and landlock.abi() > 0,
        "seccomp": asked and seccomp.available(),
        "reason": reason,
    }


def check(workers: WorkersConfig, *, gpu: bool) -> None:
    """Log once if models are not kept from what the server can reach; raises StartError if the settings demand that
    they are, or name a path that is not there."""
    if workers.sandbox == "off":
        return
    for leaf in ("sandbox_read", "sandbox_write"):
        for path in getattr(workers, leaf):
            if not os.path.exists(_whole(path)):
                raise StartError(f"workers.{leaf}: there is no file or folder {path}")
    if reason := report(workers, gpu=gpu)["reason"]:
        if workers.sandbox == "on":
            raise StartError(f'{reason}, and workers.sandbox is on: "auto" starts with what there is')
        log.warning("models are not kept from files, sockets and processes of this user: %s", reason)


def exposed(config: ServerConfig, folders: Iterable[str]) -> list[str]:
    """Return what the sandbox does not keep from models and should: secrets, as files of tokens and keys that lie in
    one of the families' `folders` or in what the settings let models read, and code that the server runs."""
    secrets = (("listen.tls_key", config.listen.tls_key), *config.secret_files)
    readable = (*folders, *map(_whole, config.workers.sandbox_read), *map(_whole, config.workers.sandbox_write))
    roots = [Path(folder).resolve() for folder in readable if folder]
    paths = []
    for name, path in secrets:
        home = next((root for root in roots if path and Path(_whole(path)).resolve().is_relative_to(root)), None)
        if home is not None:
            paths.append(f"{name}: {path} lies in {home}, which models may read: move it elsewhere")
    for path in map(_whole, config.workers.sandbox_write):
        own = Path(path).resolve()
        installed = map(Path, sandbox.installed())
        code = next((tenant for tenant in installed if tenant.is_relative_to(own) or own.is_relative_to(tenant)), None)
        if code is not None:
            text = f"workers.sandbox_write lets models change {path}, and the server runs code of {code}"
            paths.append(f"{text}: name a folder of their own")
    return paths


def _whole(path: str) -> str:
    return str(Path(path).expanduser().absolute())
