"""Networks of families whose weights are published and not shipped: with them, or, untrained, with random ones."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from clover.errors import ConfigError
from clover.families import published

if TYPE_CHECKING:
    from clover.types import VariantSpec

_log = logging.getLogger("clover.models.networks")


def hide_torchaudio() -> None:
    """Let torchaudio count as not installed in this process, unless it or transformers was imported already.

    transformers imports it if it is there, and a build of it that was made for another build of torch cannot be loaded,
    which is an OSError that nothing catches.  torchcrepe brings it (family `pitch`), on a machine without a GPU PyPI's
    build for CUDA beside a torch for CPUs.  No network here hears anything.  Whoever imports transformers before this
    module needs a torchaudio that loads.
    """
    if "transformers" not in sys.modules:  # else it has looked for torchaudio, and would import what it found
        sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type]  # makes `import` say ModuleNotFoundError


hide_torchaudio()


def weights_of(variant: VariantSpec) -> dict[str, Any] | None:
    """Return the published weights of a variant, by name; None if it is untrained."""
    if variant.untrained or variant.published is None:
        _log.info("%s is UNTRAINED: it answers with random weights", variant.name)  # the server warns, once for all
        return None
    path = published.file_of(variant.published)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    return dict(torch.load(path, map_location="cpu", weights_only=True))


@contextlib.contextmanager
def same_random_weights() -> Iterator[None]:
    """Let what is built within get the same random weights in every worker, and leave others' random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def of_transformers(variant: VariantSpec, kind: Any, configuration: Any) -> torch.nn.Module:
    """Return a variant's network of the library transformers, `kind` built from `configuration`.

    Raises ConfigError if the published weights are of another network."""
    state = weights_of(variant)
    if state is None:
        with same_random_weights():
            model: torch.nn.Module = kind(configuration)
        return model.eval()
    model, report = kind.from_pretrained(None, config=configuration, state_dict=state, output_loading_info=True)
    lacking = [str(one) for key in ("missing_keys", "mismatched_keys") for one in report[key]]
    if lacking:
        raise ConfigError(f"{variant.name}: the published weights lack {len(lacking)} tensors, first {min(lacking)}")
    return model.eval()
