"""Where the state of a cluster's controller is kept: a file, on storage that the next controller sees too.

The file is replaced as a whole, so that one that is read is never half written.  On shared storage (NFS, a volume) a
controller that is started on another machine finds it; on a local disk the state is lost with the machine, and a new
controller begins with what the nodes report.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from clover.cache import replace_file
from clover.errors import ClusterError

_MOST_BYTES = 64 << 20


class FileStore:
    """Implements `clover.cluster.ports.Store` by the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def load(self) -> bytes | None:
        """Return what was saved last, or None.  ClusterError if the file is there and cannot be read."""
        return await asyncio.to_thread(self._load)

    async def save(self, state: bytes) -> None:
        """Replace what is kept.  ClusterError if it cannot be written."""
        try:
            await asyncio.to_thread(replace_file, self.path, state)
        except OSError as error:
            raise ClusterError(f"the controller's state cannot be saved to {self.path}: {error.strerror}") from error

    def _load(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                found = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterError(f"the controller's state cannot be read from {self.path}: {error.strerror}") from error
        if len(found) > _MOST_BYTES:
            raise ClusterError(f"{self.path} is too large to be the state of a controller: give cluster.store another")
        return found
