"""Which backends could serve a variant here, and the compiling of what some of them need."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from clover import backends as registry
from clover import families
from clover.errors import ProfileError
from clover.types import FamilySpec, VariantSpec

log = logging.getLogger("clover.profiling")

COMPILED_AT_FIRST_START = ("onnxruntime",)
"""Backends whose artifacts a quick measurement makes itself: an export takes seconds a variant, aoti minutes in all."""

_COMPILING_AT_ONCE = 2


class Candidates:
    """The backends of each variant, eager always among them as the reference; `notes` say why others are not."""

    def __init__(self, spec: FamilySpec, wanted: Iterable[str], cache_dir: Path, notes: list[str]) -> None:
        self._spec = spec
        self._cache_dir = cache_dir
        self._notes = notes
        self.of: dict[str, list[str]] = {variant.name: ["eager"] for variant in spec.variants}
        for name in wanted:
            if name == "eager":
                continue
            backend = registry.get(name)
            if reason := backend.available():
                notes.append(f"{name} is not used: {reason}")
                continue
            for variant in spec.variants:
                if reason := backend.supports(spec, variant):
                    notes.append(f"{name} is not used: {reason}")
                else:
                    self.of[variant.name].append(name)

    def artifact(self, variant: VariantSpec, backend: str, threads: int) -> Path:
        """Where the artifact lies or would lie."""
        return registry.artifact_dir(self._cache_dir, self._spec, variant, backend, threads)

    def compiled(self, variant: VariantSpec, backend: str, threads: int) -> bool:
        """Whether a worker could load it: compiled, or nothing to compile."""
        return not registry.get(backend).compiles or registry.is_compiled(self.artifact(variant, backend, threads))

    async def compile(
        self,
        names: Iterable[str],
        threads: Iterable[int],
        within_s: float,
        say: Callable[[str, int, int], None],
    ) -> None:
        """Compile what is missing of backends `names`, starting nothing after `within_s`; what is still missing then is
        no candidate any more."""
        chosen, counts = set(names), tuple(threads)
        wanted = [
            (variant, name, count)
            for variant in self._spec.variants
            for name in self.of[variant.name]
            for count in counts
            if name in chosen and not self.compiled(variant, name, count)
        ]
        # Some backends have one artifact for any number of threads.
        missing = list({self.artifact(*item): item for item in reversed(wanted)}.values())[::-1]
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        gate = asyncio.Semaphore(_COMPILING_AT_ONCE)
        finished = 0

        async def one(variant: VariantSpec, name: str, count: int) -> None:
            nonlocal finished
            async with gate:
                left_s = until - loop.time()
                if left_s <= 0:
                    return
                say(f"compiling {variant.name} with {name}", finished, len(missing))
                limit = {"timeout_s": left_s} if left_s < math.inf else {}
                folder = self.artifact(variant, name, count)
                try:
                    await registry.compile_in_background(self._spec, variant, name, folder, count, **limit)
                except ProfileError as error:
                    self._notes.append(f"{name} is not used for {variant.name}: {error}")
                    log.warning("%s cannot compile %s: %s", name, variant.name, error)
                finished += 1

        async with asyncio.TaskGroup() as group:
            for item in missing:
                group.create_task(one(*item))
        command = f"python -m clover profile {families.reference(self._spec)} --compile"
        for name in dict.fromkeys(name for found in self.of.values() for name in found):
            lacking = [
                variant.name
                for variant in self._spec.variants
                if name in self.of[variant.name] and not self.compiled(variant, name, 1)
            ]
            for variant_name in lacking:
                self.of[variant_name].remove(name)
            if lacking:
                self._notes.append(f"{name} is not compiled for {', '.join(lacking)}: `{command}`")
