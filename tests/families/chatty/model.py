"""A model that prints without end."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    enough = threading.Event()
    printing = threading.Thread(target=_print, args=(enough,), daemon=True)

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if not printing.ident:
            printing.start()
        print("a batch", flush=True)
        if 2 in inputs[0]:
            enough.set()
            printing.join()
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return [inputs[0]]

    return run


def _print(enough: threading.Event) -> None:
    for first in itertools.count(step=100):
        if enough.is_set():
            return
        os.write(1, b"".join(b"line %d of a flood\n" % number for number in range(first, first + 100)))
