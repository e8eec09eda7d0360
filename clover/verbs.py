"""The commands of an operator, one struct a verb: what it takes, within which bounds, and what it is for.

    pin     {model, variant | configuration, force?}   serve one variant, or one configuration; {variant: null} lifts it
    base    {model}                            pin BASE
    freeze  {on, model?}                       hold everything as it is, or let go
    plan    {model, configuration?, ...}       what would be done: the plan and the steps; changes nothing
    apply   {model, configuration?, ..., force?}       plan and apply now, without waiting for a back-off
    guard   {reset: true, model?}              watch answers anew, with the plan's own thresholds and cascade
    set     {model?, accuracy_floor?, slo_ms?, lambda?, objective?, mode?, force?}   change targets, then plan

`plan` and `apply` take the inputs of a plan in place of those that hold: intensity_g_per_kwh, arrival_rate, and the
targets of `set`.  A configuration is {"small@1c": 2} or [{"variant": "small", "profile": "1c", "count": 2}].  Without
`model` a command means the only family there is (`freeze`, `guard` and `set`: all of them).  With `dry_run: true` any
of them shows what it would do.

The controller carries them out (`clover.control.commands`).  The bodies of `POST /v2/clover/VERB` in `/openapi.json`
and the options of `ctl VERB` follow from the structs.  Models, variants and configurations are checked against what is
served, where that is known; all else is checked here.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType, field

from clover.errors import BadRequest
from clover.hints import did_you_mean
from clover.quantities import IN_PERCENT

Force = Annotated[
    bool,
    Meta(
        description="do it although the plan is predicted to break the accuracy floor or the SLO; else that is a 409",
    ),
]
AccuracyFloor = Annotated[float, Meta(ge=0, le=100, description="percent")] | UnsetType | None
SloMs = Annotated[float, Meta(ge=1e-3, le=1e9)] | UnsetType | None
Lambda = Annotated[float, Meta(ge=0, le=1)] | UnsetType | None
Form = Literal["paper", "floor"] | UnsetType | None
Mode = Literal["off", "observe", "active"]
Intensity = Annotated[float, Meta(ge=0, le=1e5)] | UnsetType | None
Rate = Annotated[float, Meta(ge=0, le=1e9)] | UnsetType | None

CONFIGURATION = (
    'A `configuration` ({"VARIANT@PROFILE": COUNT}) is taken too; which ones exist depends on what was measured here.'
)
"""What descriptions say of it."""

TARGETS = ("accuracy_floor", "slo_ms", "lambda", "objective")
INPUTS = ("intensity_g_per_kwh", "arrival_rate")


class Command(Struct, forbid_unknown_fields=True, kw_only=True):
    """What an operator asks for.  `help` is for `ctl`; `body` and `required` describe the body of the request, in which
    `model` need not be named if one family is served."""

    help: ClassVar[str]
    body: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ("model",)

    dry_run: bool = False


class PinCommand(Command):
    """Serve one variant, or one configuration; `variant` null lifts the pin."""

    help = "serve one variant only, or one configuration, until pin --off"
    body = "Hold a model to one variant (null lifts the pin)."
    required = ("model", "variant")

    model: str | UnsetType = UNSET
    variant: str | UnsetType | None = UNSET
    configuration: Any = UNSET
    force: Force = False

    def __post_init__(self) -> None:
        if (self.variant is UNSET) == (self.configuration is UNSET):
            raise BadRequest("pin takes either variant or configuration; variant: null lifts the pin")


class FreezeCommand(Command):
    """Hold everything as it is, or let go."""

    help = "keep what runs and plan nothing, until freeze --off"
    body = "Keep every deployment as it is, or let go again."
    required = ("on",)

    on: bool | UnsetType = UNSET
    model: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.on is UNSET:
            raise BadRequest("freeze takes on: true or on: false")


class PlanCommand(Command):
    """Show what would be done; changes nothing.  What is given stands in for what holds."""

    help = "show what would be done now, the plan and its steps; change nothing"
    body = "What the controller would do; changes nothing."

    model: str | UnsetType = UNSET
    configuration: Any = UNSET
    accuracy_floor: AccuracyFloor = UNSET
    slo_ms: SloMs = UNSET
    lam: Lambda = field(name="lambda", default=UNSET)
    objective: Form = UNSET
    intensity_g_per_kwh: Intensity = UNSET
    arrival_rate: Rate = UNSET

    @property
    def chooses(self) -> bool:
        """Whether it says what to plan with, or which workers to have."""
        chosen = given(self, ("configuration", *TARGETS, *INPUTS)).values()
        return any(value is not None for value in chosen)


class ApplyCommand(PlanCommand):
    """Plan and apply now."""

    help = "plan now and apply it, or apply the configuration given; it holds until the next trigger"
    body = "Plan and apply now."

    force: Force = False


class BaseCommand(Command):
    """Pin BASE."""

    help = "pin BASE, the best variant on whole devices, until pin --off"
    body = "Run the best variant on whole devices."

    model: str | UnsetType = UNSET


class GuardCommand(Command):
    """Watch answers anew."""

    help = "after a drift: forget it and watch answers anew, with the plan's own thresholds and cascade"
    body = "Watch answers anew after a drift: the plan's own thresholds, and its cascade, are back."
    required = ("reset",)

    reset: Literal[True] | UnsetType = UNSET
    model: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.reset is not True:
            raise BadRequest("guard takes reset: true")


class SetCommand(Command):
    """Change targets or the mode."""

    help = "change targets while the server runs"
    body = "Change targets or mode while serving."
    required = ()
    changes: ClassVar[tuple[str, ...]] = (*TARGETS, "mode")
    """Of these it names one at least."""

    model: str | UnsetType = UNSET
    mode: Mode | UnsetType | None = UNSET
    accuracy_floor: AccuracyFloor = UNSET
    slo_ms: SloMs = UNSET
    lam: Lambda = field(name="lambda", default=UNSET)
    objective: Form = UNSET
    force: Force = False

    def __post_init__(self) -> None:
        if not given(self, TARGETS) and self.mode in (UNSET, None):
            raise BadRequest(f"set changes one of {', '.join(self.changes)}")


VERBS: dict[str, type[Command]] = {
    "pin": PinCommand,
    "freeze": FreezeCommand,
    "plan": PlanCommand,
    "apply": ApplyCommand,
    "base": BaseCommand,
    "guard": GuardCommand,
    "set": SetCommand,
}


@dataclass(frozen=True)
class Argument:
    """An argument of a command, called `name` on the wire and `attribute` here: its type, its allowed values or bounds,
    whether it may be null, and what it is for."""

    name: str
    attribute: str
    kind: Any
    choices: tuple[Any, ...] = ()
    nullable: bool = False
    low: float = -math.inf
    high: float = math.inf
    description: str = ""

    def check(self, value: Any) -> None:
        """Raise BadRequest if `value` is of another kind, or out of bounds."""
        if value is None and self.nullable:
            return
        if self.kind is bool and not self.choices and not isinstance(value, bool):
            raise BadRequest(f"{self.name} is true or false, not {value!r}")
        if self.kind is float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise BadRequest(f"{self.name} is a number, not {value!r}")
            if not self.low <= value <= self.high:
                raise BadRequest(f"{self.name} lies between {self.low:g} and {self.high:g}, but is {value:g}")
            if self.attribute == "accuracy_floor" and 0.0 < value < 1.0:
                raise BadRequest(f"{self.name} {value:g} {IN_PERCENT}")
        if self.choices and self.kind is str and value not in self.choices:
            hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            raise BadRequest(f"{self.name} is one of {', '.join(self.choices)}, not {value!r}{hint}")


@cache
def arguments(command: type[Command]) -> dict[str, Argument]:
    """Return the arguments of a command by the names that they have on the wire."""
    hints = get_type_hints(command, include_extras=True)
    names = zip(command.__struct_fields__, command.__struct_encode_fields__, strict=True)
    return {name: _argument(name, attribute, hints[attribute]) for attribute, name in names}


def _argument(name: str, attribute: str, hint: Any) -> Argument:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    (taken,) = (option for option in options if option not in (types.NoneType, UnsetType))
    kind, *notes = get_args(taken) if get_origin(taken) is Annotated else (taken,)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    note = notes[0] if notes else Meta()
    return Argument(
        name=name,
        attribute=attribute,
        kind=type(choices[0]) if choices else kind,
        choices=choices,
        nullable=types.NoneType in options,
        low=-math.inf if note.ge is None else note.ge,
        high=math.inf if note.le is None else note.le,
        description=note.description or "",
    )


def read(verb: str, asked: Mapping[str, Any]) -> Command:
    """Return the command `verb` with the arguments `asked`, as they are given; raises BadRequest if they make no
    sense."""
    if verb not in VERBS:
        raise BadRequest(f"unknown command {verb!r}{did_you_mean(verb, VERBS)}")
    fields = arguments(VERBS[verb])
    for key in asked:
        if key not in fields:
            raise BadRequest(f"{verb} has no argument {key!r}, known: {', '.join(fields)}{did_you_mean(key, fields)}")
    for key, value in asked.items():
        fields[key].check(value)
    return VERBS[verb](**{fields[key].attribute: value for key, value in asked.items()})


def given(command: Command, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the arguments `names` that are given, null included."""
    fields = arguments(type(command))
    found = {name: getattr(command, fields[name].attribute) for name in names if name in fields}
    return {name: value for name, value in found.items() if value is not UNSET}
