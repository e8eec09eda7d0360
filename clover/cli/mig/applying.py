"""`apply`: carry out the changes of a configuration, GPU by GPU, and report each step when it is done.

On each GPU all removals come first and new instances then, at explicit places, so that no order of creation runs into a
dead end.  GPUs follow one another.  Nothing is rolled back: done steps are reported, what exists is legal at any time,
and the same command continues from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from clover.cli.mig.box import GpuBox
from clover.cli.mig.changes import Changes, compare
from clover.cli.mig.words import grouped
from clover.devices.mig import MigDevice
from clover.errors import DeviceError
from clover.hints import program

Say = Callable[[str], None]


def steps_of(changes: Sequence[Changes]) -> list[dict[str, str]]:
    """Return what would be done, step by step, as JSON; `keep` does nothing."""
    steps: list[dict[str, str]] = []
    for item in changes:
        modes = [] if item.mode is None else [{"do": "mode on" if item.mode else "mode off", "at": item.gpu.device}]
        steps += modes if item.mode else []
        steps += [{"do": "make", "at": f"{item.gpu.device}: {item.unplaced}"}] if item.unplaced else []
        steps += [{"do": "keep", "at": place.id} for place in item.keep]
        steps += [{"do": "remove", "at": there.placement.id} for there in item.destroy]
        steps += [{"do": "make", "at": place.id} for place in item.create]
        steps += [] if item.mode else modes
    return steps


def plan_lines(changes: Sequence[Changes]) -> list[str]:
    """Return what would be done, for people: a few lines a GPU."""
    lines: list[str] = []
    for item in changes:
        parts = [("turn", "MIG mode on")] if item.mode else []
        parts += [("keep", grouped(item.keep))] if item.keep else []
        spared = [there for there in item.destroy if there.remark]
        parts += [("remove", f"{there.placement.profile}@{there.placement.start}{there.remark}") for there in spared]
        going = [there.placement for there in item.destroy if not there.remark]
        parts += [("remove", grouped(going))] if going else []
        parts += [("make", grouped(item.create))] if item.create else []
        parts += [("make", item.unplaced)] if item.unplaced else []
        parts += [("turn", "MIG mode off")] if item.mode is False else []
        for number, (what, where) in enumerate(parts):
            lines.append(f"{'' if number else item.gpu.device:<6} {what:<7} {where}")
    return lines


def carry_out(box: GpuBox, changes: Sequence[Changes], say: Say) -> list[str]:
    """Carry out the changes; return what is left to do by hand (a reset), each in a sentence.  `say` gets each step
    that is done; DeviceError names the step that failed."""
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


def _turn(box: GpuBox, item: Changes, *, on: bool, say: Say) -> bool:
    """Turn the MIG mode of a GPU on or off; return whether it is so now: otherwise the GPU must be reset first."""
    word = "on" if on else "off"
    if item.gpu.pending == on and item.gpu.enabled != on:
        return False  # asked for already
    try:
        done = box.set_mode(item.gpu, on)
    except DeviceError as error:
        raise DeviceError(f"{item.gpu.device}: MIG mode cannot be turned {word}: {error}") from error
    say(f"{item.gpu.device}: MIG mode is {word}{'' if done else ' from the next reset on'}")
    return done


async def _instances(device: MigDevice, item: Changes, say: Say) -> None:
    """Remove and make the instances of one GPU."""
    for there in item.destroy:
        if not there.ours:
            await device.claim(there.placement)
        await device.destroy(there.placement)
        say(f"removed {there.placement.id}")
    for place in item.create:
        await device.create(place)
        say(f"made {place.id}")


def _reset(device: str, index: int, emulated: bool, *, then: str) -> str:
    """Return how to reset a GPU, in a sentence."""
    how = (
        f"make the emulated box anew with `{program()} mig emulate`, with or without --mig-off"
        if emulated
        else f"stop what runs on it and `nvidia-smi --gpu-reset -i {index}`, or reboot"
    )
    return f"{device} needs a reset for its MIG mode to change: {how}; {then}"
