"""`python -m clover mig VERB`: the MIG layout of a box, real or emulated, from the command line.

    list      what there is: GPUs, MIG mode, instances and whose they are, the room that is left
    export    the present layouts as a file
    assert    whether the box matches a file
    apply     reach a file's layouts with the fewest changes
    plan      what a change of layouts costs while a server serves: steps, capacity, drawings; needs no GPU
    emulate   run any NVML program on an emulated box, or act on a running one

Exit codes: 0 done, 1 the box differs or refused, 2 the command or a file cannot be read, 3 the box cannot be reached
(`plan`: the floor cannot be held).  `emulate ... -- COMMAND` passes on the exit code of COMMAND.
"""

from __future__ import annotations

from clover.cli.mig.command import main

__all__ = ["main"]
