"""`python -m clover mig VERB`: how the GPUs of a machine are split into MIG instances; the GPUs may be emulated.

    list      GPUs, MIG mode, instances with their owner, and the room that is left
    export    the present layouts as a file
    assert    whether the GPUs match a file
    apply     reach a file's layouts with the fewest changes
    emulate   run any NVML program on emulated GPUs, or make a box of them

Exit codes: 0 done, 1 the GPUs differ or refused, 2 the command or a file cannot be read, 3 the GPUs cannot be reached.
`emulate ... -- COMMAND` passes on the exit code of COMMAND.
"""

from __future__ import annotations

from clover.cli.mig.command import main

__all__ = ["main"]
