"""`plan`: what a change of layouts costs a server that serves meanwhile, computed without touching anything.

Each instance is assumed to hold one worker, and a worker to be worth its compute slices.  The steps are those that the
controller would take (`clover.planning.transition.steps`), under a floor given as a share of all compute slices of the
GPUs, as `controller.capacity_floor` is a share of what BASE serves.

Lists in words are wishes: which GPU gets which list is chosen, among GPUs of one kind, such that the most keeps
serving.  If any start is given (`3g@4`), and in files, each list means its own GPU.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from clover.cli.mig import files
from clover.cli.mig.drawing import Block, Strokes, bar, strip, width_for
from clover.cli.mig.emulate import parse_box
from clover.cli.mig.listing import say
from clover.cli.mig.state import GpuState
from clover.cli.mig.words import Ask, Asks, choices, counted, grouped, parse_layout, unplaceable
from clover.devices import tables
from clover.errors import ConfigError, DeviceError
from clover.planning.packing import geometry
from clover.planning.packing.geometry import SliceProfile
from clover.planning.transition.layout import lay_out
from clover.planning.transition.steps import StageView, StepSeconds, plan_transition, stages
from clover.types import Assignment, DeviceShape, GroupCount, Placement, Record, Step, Transition

NOW = "now"
_WORKER = "worker"
_BAR = 24
_WIDE, _LEAST_STEP = 100, 24
"""Columns of a console that has room for the whole bar; and that the words of a step get at least."""


class PlannedGpu(Record, frozen=True, kw_only=True):
    """A GPU to plan for."""

    device: str
    product: str
    compute: int
    axis: int
    profiles: dict[str, SliceProfile]


class Wish(Record, frozen=True, kw_only=True):
    """What the GPUs shall have: lists in words, or a configuration of a file."""

    words: tuple[Asks, ...] = ()
    config: files.Config = ()

    @property
    def fixed(self) -> bool:
        """Whether each list means its own GPU."""
        return bool(self.config) or any(ask.start is not None for asks in self.words for ask in asks)

    @property
    def gpus(self) -> int:
        """How many GPUs it names."""
        named = [index for group in self.config for index in group.devices or ()]
        return max([len(self.words), *(index + 1 for index in named), 1])


Layout = dict[str, tuple[Placement, ...]]
"""The instances of each GPU."""


class Planned(Record, frozen=True, kw_only=True):
    """The answer: the transition and its stages, the state before them first."""

    boards: tuple[PlannedGpu, ...]
    share: float
    total: int
    transition: Transition
    views: tuple[StageView, ...]
    durations: StepSeconds

    @property
    def least(self) -> float:
        """The least capacity that may be expected: what the smaller end of the change serves."""
        return min(self.views[0].capacity, self.views[-1].capacity)

    @property
    def missing_s(self) -> float:
        """How long less than that serves."""
        return sum(view.seconds for view in self.views if view.capacity < self.least)


# --- what is to be planned ------------------------------------------------------------------------------------------


def boards_of(text: str, wanted: int) -> tuple[PlannedGpu, ...]:
    """Return the GPUs of NAME[:COUNT][,NAME[:COUNT]]...; `wanted` of them if no count is given.  Raises ConfigError."""
    found: list[PlannedGpu] = []
    parts = text.split(",")
    for part in parts:
        name, count = parse_box(part)
        try:
            table = tables.table(name)
        except DeviceError as error:
            raise ConfigError(str(error)) from error
        profiles = {profile.name: profile for profile in tables.slice_profiles(table, base_only=False)}
        for _ in range(max(count, wanted) if ":" not in part and len(parts) == 1 else count):
            found.append(
                PlannedGpu(
                    device=f"gpu{len(found)}",
                    product=table.product,
                    compute=table.compute_slices,
                    axis=table.memory_slices,
                    profiles=profiles,
                )
            )
    return tuple(found)


def present(gpus: Sequence[GpuState]) -> tuple[tuple[PlannedGpu, ...], Layout]:
    """Return the GPUs that can be planned for, those with MIG mode on, and their instances.  Raises ConfigError."""
    able = [gpu for gpu in gpus if gpu.enabled and not gpu.lost]
    if not able:
        raise ConfigError("no GPU of the box has MIG mode on: `list` says more")
    boards = tuple(
        PlannedGpu(
            device=gpu.device,
            product=gpu.product,
            compute=gpu.compute_slices,
            axis=gpu.memory_slices,
            profiles=gpu.profiles,
        )
        for gpu in able
    )
    return boards, {gpu.device: tuple(item.placement for item in gpu.instances) for gpu in able}


def wish_of(text: str, configs: Mapping[str, files.Config]) -> Wish:
    """Return a LAYOUT in words, or the configuration of that name.  Raises ConfigError."""
    if text in configs:
        return Wish(config=configs[text])
    try:
        return Wish(words=parse_layout(text))
    except ConfigError as error:
        if configs:
            raise ConfigError(f"{error}; or the name of a configuration: {', '.join(configs)}") from error
        raise ConfigError(f"{error}; or, with --file, the name of a configuration") from error


def lists_for(boards: Sequence[PlannedGpu], wish: Wish) -> Sequence[Asks | None]:
    """Return one list for each of `boards`; None if a configuration leaves a GPU alone.  Raises ConfigError."""
    if wish.config:
        numbers = [int(board.device.removeprefix("gpu")) for board in boards]
        groups = files.of_gpus(wish.config, 1 + max(numbers))
        for number, group in groups.items():
            if not group.mig:
                raise ConfigError(f"the configuration turns MIG off on gpu{number}: plans are made between MIG layouts")
        return [groups[number].asks if number in groups else None for number in numbers]
    if len(wish.words) == 1:
        return list(wish.words) * len(boards)
    if len(wish.words) != len(boards):
        raise ConfigError(
            f"{len(wish.words)} lists for {len(boards)} GPU{'s' if len(boards) > 1 else ''}: give one for all, or one "
            "each, separated by /"
        )
    return list(wish.words)


def place_first(boards: Sequence[PlannedGpu], wish: Wish) -> Layout:
    """Return each list on its GPU, at the first places that fit.  Raises ConfigError if one does not fit."""
    found: Layout = {}
    for board, asks in zip(boards, lists_for(boards, wish), strict=True):
        if asks is None:
            raise ConfigError(f"the configuration says nothing of {board.device}: a plan starts from all GPUs")
        found[board.device] = next(_choices(board, asks))
    return found


def place_best(boards: Sequence[PlannedGpu], wish: Wish, before: Layout) -> Layout:
    """Return each list on a GPU such that most of `before` keeps serving; on its own one if the wish is fixed.  Raises
    ConfigError if a list does not fit."""
    lists = [
        asks if asks is not None else tuple(Ask(profile=p.profile, start=p.start) for p in before[board.device])
        for board, asks in zip(boards, lists_for(boards, wish), strict=True)
    ]
    kinds: dict[str, list[int]] = {}
    for index, board in enumerate(boards):
        kinds.setdefault(board.device if wish.fixed else repr(board.profiles), []).append(index)
    found: Layout = {}
    for members in kinds.values():
        group = [boards[index] for index in members]
        wishes = list(dict.fromkeys(lists[index] for index in members))
        shapes = [_shape(board, [one for asks in wishes for one in _choices(board, asks)]) for board in group]
        # Any GPU of a kind does for counting what is wished for.
        wished = Counter(place.profile for index in members for place in next(_choices(group[0], lists[index])))
        configuration = tuple(GroupCount(variant=_WORKER, profile=p, count=n) for p, n in sorted(wished.items()))
        running = [worker(place) for board in group for place in before[board.device]]
        chosen = lay_out(configuration, family=_WORKER, backend={_WORKER: ""}, devices=shapes, running=running)
        for board in group:
            found[board.device] = tuple(item.placement for item in chosen if item.placement.device == board.device)
    return found


def _choices(board: PlannedGpu, asks: Asks) -> Iterator[tuple[Placement, ...]]:
    found = choices(asks, board.profiles, device=board.device, compute=board.compute)
    first = next(found, None)
    if first is None:
        where = f"{board.device} ({board.product})"
        raise unplaceable(asks, board.profiles, compute=board.compute, where=where)
    yield first
    yield from found


def worker(place: Placement) -> Assignment:
    """Return the worker that an instance is assumed to hold."""
    return Assignment(placement=place, family=_WORKER, variant=_WORKER, backend="")


def _shape(board: PlannedGpu, layouts: Sequence[tuple[Placement, ...]]) -> DeviceShape:
    return DeviceShape(device=board.device, kind="mig", layouts=tuple(layouts), slices=board.compute, overlap=False)


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan(
    boards: Sequence[PlannedGpu],
    before: Layout,
    after: Layout,
    share: float,
) -> Planned:
    """Return the transition from `before` to `after`, holding `share` of all compute slices if that is possible."""
    total = sum(board.compute for board in boards)
    running, target = ([worker(place) for places in state.values() for place in places] for state in (before, after))
    durations = StepSeconds()
    used = {place.profile for state in (before, after) for places in state.values() for place in places}
    shapes = []
    for board in boards:
        named = [profile for name, profile in board.profiles.items() if name in used]
        layouts = geometry.layouts(named, device=board.device, compute=board.compute)
        shapes.append(_shape(board, layouts))
    transition = plan_transition(running, target, shapes, floor=share * total, durations=durations)
    return Planned(
        boards=tuple(boards),
        share=share,
        total=total,
        transition=transition,
        views=stages(transition, running, durations=durations),
        durations=durations,
    )


def plain(found: Planned) -> dict[str, Any]:
    """Return the plan as JSON."""
    transition = found.transition
    return {
        "gpus": [
            {"device": item.device, "product": item.product, "compute_slices": item.compute, "memory_slices": item.axis}
            for item in found.boards
        ],
        "capacity": {
            "unit": "compute slices",
            "total": found.total,
            "before": found.views[0].capacity,
            "after": found.views[-1].capacity,
            "lowest": transition.lowest_capacity,
            "floor_share": found.share,
            "floor": transition.capacity_floor,
            "holds": transition.holds,
            "below_floor_s": transition.loses_s,
            "below_both_ends_s": found.missing_s,
        },
        "kept": [item.placement.id for item in transition.kept],
        "seconds": sum(view.seconds for view in found.views),
        "assumed": {key: getattr(found.durations, key) for key in found.durations.__struct_fields__},
        "stages": [
            {
                "stage": view.stage,
                "start_s": view.start_s,
                "seconds": view.seconds,
                "capacity": view.capacity,
                "steps": [{"kind": step.kind, "at": [place.id for place in _places(step)]} for step in view.steps],
                "standing": [place.id for place in view.standing],
                "serving": [item.placement.id for item in view.routed],
            }
            for view in found.views
        ],
    }


def _places(step: Step) -> list[Placement]:
    workers = [step.assignment] if step.assignment else step.routed
    return [step.placement] if step.placement else [item.placement for item in workers]


# --- for people -------------------------------------------------------------------------------------------------------


def show(found: Planned, console: Console, ink: Strokes) -> None:
    """Print the plan: drawings before, between and after, the stages with their capacity, and what is lost."""
    say(console, counted(board.product for board in found.boards) + "; nothing is changed")
    say(console, "")
    first, last = found.views[0], found.views[-1]
    width = _width(found)
    _draw("before", first, found.boards, width, console, ink)
    if not found.transition.steps:
        say(console, "\nnothing to do: the layouts are the same")
        return
    columns = _BAR if console.width >= _WIDE else _BAR // 2
    before = 14 + columns + 12 + 2  # what stands left of the steps
    say(console, "\n   at    for  serves" + " " * (columns + 8) + "step")
    for view in found.views:
        lines = [
            line
            for step in _steps(view)
            for line in textwrap.wrap(step, max(_LEAST_STEP, console.width - before), subsequent_indent=" " * 9)
        ]
        for number, text in enumerate(lines):
            head = f"{view.start_s:5.1f}  {view.seconds:5.1f}  " if not number else " " * 14
            meter = _meter(view.capacity, found, ink, columns) if not number else " " * (columns + 12)
            say(console, Text.assemble(head, (meter, _colour(view.capacity, found)), f"  {text}"))
    for view in found.views[1:-1]:
        if any(step.kind in ("create", "destroy") for step in view.steps):
            touched = {step.placement.device for step in view.steps if step.placement}
            boards = [board for board in found.boards if board.device in touched]
            say(console, "")
            _draw(f"at {view.start_s + view.seconds:.1f} s", view, boards, width, console, ink)
    say(console, "")
    _draw("after", last, found.boards, width, console, ink)
    say(console, f"\n{ink.free} free   (name) stands and receives no rows   name receives rows\n")
    for line in verdict(found):
        say(console, textwrap.fill(line, console.width, subsequent_indent="  "))


def verdict(found: Planned) -> list[str]:
    """Return what the change keeps and what it costs, in sentences."""
    transition = found.transition
    steps = [step for step in transition.steps if step.kind != "route"]
    seconds = sum(view.seconds for view in found.views)
    kept = f"kept and never touched: {len(transition.kept)} of {len(found.views[0].routed)} instances"
    lines = [f"{kept}; {len(steps)} steps, about {seconds:.0f} s (estimated)"]
    if found.missing_s:
        idle_s = sum(view.seconds for view in found.views if not view.capacity)
        lines.append(
            f"lost meanwhile: {found.least - transition.lowest_capacity:.3g} of {found.least:.3g} compute slices at "
            f"the worst; less than the smaller of the two layouts serves for about {found.missing_s:.0f} s"
        )
        if idle_s:
            lines.append(f"nothing at all serves for about {idle_s:.0f} s: rows wait in the queue")
    else:
        lines.append("no capacity is lost: at any time at least as much serves as in the smaller of the two layouts")
    if found.share:
        floor = f"the floor of {found.share:.0%} ({transition.capacity_floor:.3g} of {found.total} compute slices)"
        lines.append(
            f"{floor} is held"
            if transition.holds
            else f"{floor} cannot be held: {transition.lowest_capacity:.3g} at the lowest, and too little for about "
            f"{transition.loses_s:.0f} s; a further GPU, or a layout that shares more with the present one, would help"
        )
    return lines


def _steps(view: StageView) -> list[str]:
    if view.stage < 0:
        return ["(before)"]
    by_kind: dict[str, dict[str, list[Placement]]] = {}
    for step in view.steps:
        for place in _places(step):
            by_kind.setdefault(step.kind, {}).setdefault(place.device, []).append(place)
    return [
        f"{'route to' if kind == 'route' else kind:<8} "
        + "; ".join(f"{device} {grouped(places)}" for device, places in by_gpu.items())
        for kind, by_gpu in by_kind.items()
    ]


def _meter(capacity: float, found: Planned, ink: Strokes, columns: int) -> str:
    return f"{bar(capacity / found.total, columns, ink)} {capacity:3.0f} of {found.total:<4d}"


def _colour(capacity: float, found: Planned) -> str:
    if capacity < found.transition.capacity_floor or not capacity:
        return "red"
    return "yellow" if capacity < found.least else "green"


def _width(found: Planned) -> int:
    return max(
        width_for([Block(start=place.start, size=place.size, name=f"({place.profile})") for place in view.standing])
        for view in found.views
    )


def _draw(
    title: str, view: StageView, boards: Sequence[PlannedGpu], width: int, console: Console, ink: Strokes
) -> None:
    serving = {item.placement for item in view.routed}
    for number, board in enumerate(boards):
        blocks = [
            Block(
                start=place.start,
                size=place.size,
                name=place.profile if place in serving else f"({place.profile})",
                style="green" if place in serving else "yellow",
            )
            for place in view.standing
            if place.device == board.device
        ]
        head = f"{'' if number else title:<10} {board.device:<6}"
        drawn = strip(board.axis, blocks, ink, width)
        if len(head) + len(drawn) > console.width:
            say(console, head.strip())
            head = " "
        say(console, Text(head) + drawn)
