"""`apply`: carry out the changes of a configuration, GPU by GPU, and say of each step that it was done.

On one GPU everything that has to go goes first and what is new comes then, at explicit places, so that no order of
creation runs into a dead end.  GPUs follow one another.  Nothing is rolled back: what was done is said, what exists is
legal at any time, and the same command takes up where it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from clover.devices.mig import MigDevice
from clover.errors import DeviceError
from clover.mig.box import Box
from clover.mig.changes import Changes, compare

Say = Callable[[str], None]


def plan_lines(changes: Sequence[Changes]) -> list[str]:
    """What would be done, a line a step."""
    lines: list[str] = []
    for item in changes:
        device = item.gpu.device
        if item.mode is False:
            lines += [f"remove   {there.placement.id}{there.remark}" for there in item.destroy]
            lines.append(f"MIG off  {device}")
            continue
        if item.mode:
            lines.append(f"MIG on   {device}")
        if item.unplaced:
            lines.append(f"make     {device}: {item.unplaced}")
        lines += [f"keep     {place.id}" for place in item.keep]
        lines += [f"remove   {there.placement.id}{there.remark}" for there in item.destroy]
        lines += [f"make     {place.id}" for place in item.create]
    return lines


def carry_out(box: Box, changes: Sequence[Changes], say: Say) -> list[str]:
    """Do it; what is left to do by hand (a reset), each in a sentence.  Raises DeviceError, which says what was being
    done; `say` was told what had been."""
    waiting: list[str] = []
    for item in changes:
        if item.none:
            continue
        gpu = item.gpu
        if item.mode:
            if not _turn(box, item, on=True, say=say):
                waiting.append(_reset(gpu.device, gpu.index, box.emulated, then="then apply again"))
                continue
            now = next(state for state in box.look() if state.device == gpu.device)
            item = compare(now, item.group)
        if item.destroy or item.create:
            with box.device(gpu) as device:
                asyncio.run(_instances(device, item, say))
        if item.mode is False and not _turn(box, item, on=False, say=say):
            waiting.append(_reset(gpu.device, gpu.index, box.emulated, then="until then it stays on"))
    return waiting


def _turn(box: Box, item: Changes, *, on: bool, say: Say) -> bool:
    word = "on" if on else "off"
    try:
        done = box.set_mode(item.gpu, on)
    except DeviceError as error:
        raise DeviceError(f"{item.gpu.device}: MIG mode cannot be turned {word}: {error}") from error
    say(f"{item.gpu.device}: MIG mode is {word}{'' if done else ' from the next reset on'}")
    return done


async def _instances(device: MigDevice, item: Changes, say: Say) -> None:
    for there in item.destroy:
        if not there.ours:
            await device.claim(there.placement)
        await device.destroy(there.placement)
        say(f"removed {there.placement.id}")
    for place in item.create:
        await device.create(place)
        say(f"made {place.id}")


def _reset(device: str, index: int, emulated: bool, *, then: str) -> str:
    how = (
        "`python -m clover mig emulate --state FILE --reboot`"
        if emulated
        else f"stop what runs on it and `nvidia-smi --gpu-reset -i {index}`, or reboot"
    )
    return f"{device} needs a reset for its MIG mode to change: {how}; {then}"
