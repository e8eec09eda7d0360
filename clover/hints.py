"""Helpers of the commands: how this program was called, the nearest known word, imports, named waits, closed pipes, and
foreign texts made safe to print."""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib.machinery
import importlib.util
import os
import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

WAIT_NAMED_S = 4.0
_LONGEST_WORD = 64
_JOINTS = frozenset("-_.")
_MOST = 3
"""Words that one may have meant, at most; of more, the one that looks most alike is named."""


def program() -> str:
    """Return what the user types before a command: `clover` if the console script runs, else `python -m clover`."""
    called = getattr(sys, "argv", None) or [""]
    return "clover" if os.path.basename(called[0]) == "clover" else "python -m clover"


def duration(seconds: float, *, rough: bool = False) -> str:
    """Return "25 s", "2 min 5 s" or "1 h 20 min"; `rough`: at least a second, and whole minutes from 90 s on."""
    if rough and seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes, left = divmod(60 * round(seconds / 60) if rough else round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if rough:
        return f"{minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold back the garbage collector while the body imports: what modules make stays, and to look through it again and
    again takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def named_wait(what: str, say: Callable[[str], object]) -> Iterator[None]:
    """Say that the body waits for `what`, once, if it takes `WAIT_NAMED_S` or longer.  `say` is called in another
    thread."""
    timer = threading.Timer(WAIT_NAMED_S, say, (f"waiting for {what}",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def search_here(module: str) -> None:
    """Let Python import `module`, which a user named, from the present folder if no other place has it.

    `python -m clover` searches that folder by itself, the script `clover` does not.  The folder comes last, so that no
    file in it stands in for an installed module.  Where Python's path is to be safe (`-P`), it is left out.
    """
    top = module.partition(".")[0]
    if not top.isidentifier() or top in sys.modules or safe_path() or importlib.util.find_spec(top) is not None:
        return
    with contextlib.suppress(FileNotFoundError):  # the present folder was removed
        here = os.getcwd()
        if importlib.machinery.PathFinder.find_spec(top, [here]) is not None:
            sys.path.append(here)


def safe_path() -> bool:
    """Return whether Python was told to search no folder but those it is given (`-P`, PYTHONSAFEPATH)."""
    return sys.flags.safe_path


def until_closed(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code; end quietly if the reader of its output, as `head`, has seen enough."""
    code = 0
    try:
        code = command()
        if sys.stdout is not None:  # it is None if the caller closed it (`>&-`)
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else what is buffered raises again at exit
    return code


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known word that `word` begins or that looks like it; empty if none is near.

    Words that continue `word` (`--slo`, `--slo-ms`) beat those that merely look alike (`--slots`).
    """
    if not word or len(word) > _LONGEST_WORD:  # comparing takes time with the length, and words may come from a client
        return ""
    words = list(known)
    longer = sorted(other for other in words if other.startswith(word) and other[len(word) :][:1] in _JOINTS)
    if not 0 < len(longer) <= _MOST:
        longer = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {' or '.join(longer)}?)" if longer else ""


def printable(text: str, most: int = 0) -> str:
    """Return `text` with every character escaped that is not to be seen: it stays one line and steers no terminal.

    `most` cuts it to that many characters; 0 does not cut.
    """
    shown = text[:most] if most else text
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)
    return f"{shown[:most]}..." if most and max(len(shown), len(text)) > most else shown
