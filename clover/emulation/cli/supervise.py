"""Runs a command, passes signals on to it, and cleans up after it: `supervise.py [FOLDER]... -- COMMAND...`.

It is started by its path, in place of the process that prepared everything, because it must have one thread only:
otherwise (numerical libraries start threads when they are imported) a signal may be taken by another thread.  Here all
signals are blocked and waited for, so none is lost, and the sender of each is known.

That matters for one case: Ctrl-C in a terminal reaches the whole foreground group, the command included, and a second
copy of it means "at once" to many servers.  So signals sent by the kernel are not passed on, and those sent by a
process are.
"""

import contextlib
import os
import shutil
import signal
import sys

_PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_BY_A_PROCESS = 0
"""The si_code of what kill(2) sent; below it are the other calls of processes, above it is the kernel."""


def main(words: list[str]) -> int:
    """Run the command and return its exit code, or 128 + N if signal N ended it."""
    at = words.index("--")
    try:
        return run(words[at + 1 :])
    finally:
        for folder in words[:at]:
            shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str]) -> int:
    """Run `command` until it ends and return its exit code; 126 or 127, as a shell does, if it cannot be run."""
    watched = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigmask=before)
    except OSError as error:
        print(f"clover mig emulate: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    while True:
        seen = signal.sigwaitinfo(watched)
        if seen.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif seen.si_code <= _BY_A_PROCESS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, seen.si_signo)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
