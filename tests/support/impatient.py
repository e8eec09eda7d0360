"""Waits that are named at once (`clover.hints.named_wait`)."""

from __future__ import annotations

import threading


class Impatient(threading.Timer):
    """A timer whose time is over when it starts."""

    said: list[str] = []

    def start(self) -> None:
        self.function(*self.args, **self.kwargs)
        self.said.extend(self.args)
