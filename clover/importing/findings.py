"""What the probing process is asked, and what it answers."""

from __future__ import annotations

from clover.types import Record, TensorSpec


class ProbeOrder(Record, frozen=True, kw_only=True):
    """`targets`: "module:attribute"; `weights`: files of state dicts, for each target or none.  State dicts are written
    into `folder`.  `inputs`: as they were given; without them they are tried out."""

    targets: tuple[str, ...]
    folder: str
    weights: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()


class ProbedModule(Record, frozen=True, kw_only=True):
    """One module: what it takes and gives, its `keys` if it returns a mapping, and whether outputs are `probabilities`
    (of several values that add up to 1).  `weights` is the file in the folder, "" if it has no state; `untrained` says
    that it holds random ones."""

    name: str
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    weights: str = ""
    untrained: bool = False
    keys: tuple[str, ...] = ()
    probabilities: bool = False


class ProbeAnswer(Record, frozen=True, kw_only=True):
    """The modules, from small to large; `cuda`: whether torch sees a GPU here."""

    modules: tuple[ProbedModule, ...] = ()
    cuda: bool = False
    notes: tuple[str, ...] = ()
    error: str = ""
