"""Finds the backends that could serve a variant here, and compiles the artifacts that some of them need.

What is compiled for CPU cores depends on the number of threads.  What is compiled for a GPU depends on the shape of the
slice, so it is compiled inside a slice of that shape, which the caller makes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from clover import backends as registry
from clover import families
from clover.backends import Target
from clover.errors import ProfileError
from clover.profiling.options import CompileLimits
from clover.types import FamilySpec, SandboxOrder, VariantSpec

log = logging.getLogger("clover.profiling")

_COMPILING_AT_ONCE = 2
_SAID: set[str] = set()
"""Reasons why backends cannot be used here that this process has logged."""

_ONNX = "ONNX Runtime runs an ONNX file by itself, unless the family's loader has something else do it"

Make = tuple[int, str]
"""What an artifact is compiled for: threads, and the profile of a GPU's slice ("" for CPU cores)."""

Inside = Callable[[str], AbstractAsyncContextManager[Target]]
"""Gives the target to compile in: an instance of that profile, or the CPU for ""."""


@contextlib.asynccontextmanager
async def on_cpu(profile: str) -> AsyncIterator[Target]:
    """Give the CPU, which is always there."""
    yield registry.CPU


def log_unavailable(names: Iterable[str]) -> dict[str, str]:
    """Return the backends of `names` that cannot be used here, with the reason; log each reason once a process."""
    reasons = {name: reason for name in names if (reason := registry.get(name).available())}
    for name, reason in reasons.items():
        if reason not in _SAID:  # it is the same for every family of a start
            _SAID.add(reason)
            log.warning("%s is not used: %s", name, reason)
    return reasons


def _not_compiled(variants: Iterable[VariantSpec], names: Iterable[str]) -> list[str]:
    """Return a note on the variants that backends `names` cannot compile because they are no torch modules."""
    python = [variant for variant in variants if variant.kind != "torch"]
    kinds = {
        "an ONNX file": [variant.name for variant in python if registry.runs_itself(variant)],
        "plain Python": [variant.name for variant in python if not registry.runs_itself(variant)],
    }
    which = "; ".join(f"{', '.join(found)}: {kind}" for kind, found in kinds.items() if found)
    if not which or not (tried := ", ".join(names)):
        return []
    return [f"not compiled ({tried}): {which}{f'. {_ONNX}' if kinds['an ONNX file'] else ''}"]


class Candidates:
    """The backends that may serve each variant (`of`); eager is always among them as the reference.  Reasons why others
    are not are added to `notes`.  `targets`: what is compiled for, by profile of a GPU's slice; empty for CPU cores.
    `sandbox`: how the family's code is confined while it is compiled."""

    def __init__(
        self,
        spec: FamilySpec,
        wanted: Iterable[str],
        cache_dir: Path,
        notes: list[str],
        targets: Mapping[str, Target] | None = None,
        sandbox: SandboxOrder | None = None,
    ) -> None:
        self._spec = spec
        self._sandbox = sandbox
        self._cache_dir = cache_dir
        self._notes = notes
        self._targets = targets or {}
        any_target = next(iter(self._targets.values()), registry.CPU)
        self.of: dict[str, list[str]] = {variant.name: ["eager"] for variant in spec.variants}
        there = [name for name in wanted if any_target.cuda or not registry.get(name).gpu_only]
        names = tuple(name for name in there if name != "eager")
        unavailable = log_unavailable(names)
        for name in names:
            if name in unavailable:
                notes.append(f"{name} is not used: {unavailable[name]}")
                continue
            backend = registry.get(name)
            for variant in spec.variants:
                reason = backend.supports(spec, variant, any_target)
                if variant.kind != "torch" and reason:
                    continue  # said once, of all of them
                if reason:
                    notes.append(f"{name} is not used: {reason}")
                else:
                    self.of[variant.name].append(name)

        notes += _not_compiled(spec.variants, [name for name in names if name not in unavailable])

    def artifact(self, variant: VariantSpec, backend: str, threads: int, profile: str = "") -> Path:
        """Return the folder of the artifact for `threads`, or for slices of `profile`, whether it exists or not."""
        target = self._targets.get(profile, registry.CPU)
        return registry.artifact_dir(self._cache_dir, self._spec, variant, backend, threads, target=target)

    def compiled(self, variant: VariantSpec, backend: str, threads: int, profile: str = "") -> bool:
        """Return whether a worker could load the variant: its artifact exists, or the backend needs none."""
        if not registry.get(backend).compiles:
            return True
        return registry.is_compiled(self.artifact(variant, backend, threads, profile))

    async def compile(
        self,
        names: Iterable[str],
        makes: Iterable[Make],
        limits: CompileLimits,
        say: Callable[[str, int, int], None],
        inside: Inside = on_cpu,
    ) -> None:
        """Compile what is missing of backends `names` for each of `makes`, within `limits`.  What is still missing then
        (for one thread, or for any profile) is removed from the candidates.  `say` is called with what is being
        compiled, how many are done, and how many there are."""
        chosen, all_makes = set(names), tuple(makes)
        budget = registry.CpuBudget(limits.cpu_s, limits.clock_s)
        missing = [
            item
            for profile in dict.fromkeys(profile for _, profile in all_makes)
            for item in self._missing(chosen, [make for make in all_makes if make[1] == profile])
        ]
        gate = asyncio.Semaphore(1 if self._targets else _COMPILING_AT_ONCE)
        finished = 0

        async def one(variant: VariantSpec, name: str, make: Make, target: Target) -> None:
            nonlocal finished
            async with gate:
                if budget.spent:
                    return
                where = f" for {make[1]}" if make[1] else ""
                say(f"compiling {variant.name} with {name}{where}", finished, len(missing))
                folder = self.artifact(variant, name, *make)
                try:
                    await registry.compile_in_background(
                        self._spec,
                        variant,
                        name,
                        folder,
                        make[0],
                        target=target,
                        sandbox=self._sandbox,
                        budget=budget,
                    )
                except ProfileError as error:
                    self._notes.append(f"{name} is not used for {variant.name}: {error}")
                    log.warning("%s cannot compile %s%s: %s", name, variant.name, where, error)
                finished += 1

        for profile in dict.fromkeys(make[1] for _, _, make in missing):
            if budget.spent:
                break
            async with inside(profile) as target, asyncio.TaskGroup() as group:
                for variant, name, make in missing:
                    if make[1] == profile:
                        group.create_task(one(variant, name, make, target))
        self._leave_out(all_makes)

    def _missing(self, chosen: set[str], makes: list[Make]) -> list[tuple[VariantSpec, str, Make]]:
        wanted = [
            (variant, name, make)
            for name in dict.fromkeys(name for found in self.of.values() for name in found)  # time may not do for all
            for variant in self._spec.variants
            for make in makes
            if name in chosen and name in self.of[variant.name] and not self.compiled(variant, name, *make)
        ]
        # Some backends have one artifact for any number of threads.
        by_folder = {self.artifact(variant, name, *make): (variant, name, make) for variant, name, make in wanted[::-1]}
        return list(by_folder.values())[::-1]

    def _leave_out(self, makes: tuple[Make, ...]) -> None:
        """Remove candidates that are not compiled for one thread, or for some profile; note the command that helps."""
        needed = [make for make in makes if make[0] == 1]
        command = f"python -m clover profile {families.reference(self._spec)} --compile"
        for name in dict.fromkeys(name for found in self.of.values() for name in found):
            lacking = [
                variant.name
                for variant in self._spec.variants
                if name in self.of[variant.name] and not all(self.compiled(variant, name, *make) for make in needed)
            ]
            for variant_name in lacking:
                self.of[variant_name].remove(name)
            if lacking:
                self._notes.append(f"{name} is not compiled for {', '.join(lacking)}: `{command}`")
