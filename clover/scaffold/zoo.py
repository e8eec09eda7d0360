"""Published models by name: smaller siblings, weights, and what their library says of them (torchvision, timm,
transformers).  Runs in the probing process."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clover.types import TensorSpec

if TYPE_CHECKING:
    import torch

_WORDS = (
    *("atto", "femto", "pico", "nano", "micro", "mini", "tiny", "lite", "xxs", "xs", "small", "medium"),
    *("base", "large", "xlarge", "huge", "giant", "s", "m", "l", "b", "t"),
)
_SIZE = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z0-9])|\d+")


class Sibling(NamedTuple):
    """A target, and how many parameters its module has (0: not counted)."""

    target: str
    parameters: int = 0


def siblings(target: str, most: int) -> list[Sibling]:
    """Return `target` and up to `most` - 1 smaller models that are called as it is but for one word or number of size,
    spread evenly by their parameters.  Raises ValueError for a name that its library does not know."""
    library, _, name = target.partition(":")
    if library not in ("torchvision", "timm"):
        return [Sibling(target)]
    names = _names(library)
    plain = name.partition(".")[0]
    if plain not in names:
        import difflib

        near = difflib.get_close_matches(plain, names, 3)
        hint = f": did you mean {' or '.join(near)}?" if near else f": `{library}` lists them with list_models()"
        raise ValueError(f"{library} has no model {plain!r}{hint}")
    own = _parameters(library, plain)
    smaller = sorted(
        (
            Sibling(f"{library}:{other}", count)
            for other in alike(plain, names)
            if (count := _parameters(library, other)) < own
        ),
        key=lambda one: one.parameters,
    )
    count = min(most - 1, len(smaller))
    picked = [smaller[round(index * len(smaller) / count)] for index in range(count)] if count > 0 else []
    return [*picked, Sibling(target, own)]


def alike(name: str, names: list[str]) -> list[str]:
    """Return the names that differ from `name` in one word or number of size, sorted."""
    found = set()
    for size in _SIZE.finditer(name):
        kind = r"\d+" if size[0].isdigit() else rf"(?:{'|'.join(_WORDS)})"
        pattern = re.compile(re.escape(name[: size.start()]) + kind + re.escape(name[size.end() :]))
        found |= {other for other in names if other != name and pattern.fullmatch(other)}
    return sorted(found)


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    # Detection, segmentation and video models take and give something else.
    return list(torchvision.models.list_models(module=torchvision.models))


def _parameters(library: str, name: str) -> int:
    """Return how many parameters a model has, without making room for them."""
    import torch

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = _make(library, name)
        except Exception:  # some cannot be built without room: they are no siblings then
            return 1 << 62
    return sum(one.numel() for one in model.parameters())


def _make(library: str, name: str, **kwargs: Any) -> torch.nn.Module:
    if library == "timm":
        import timm

        made: torch.nn.Module = timm.create_model(name, **kwargs)
        return made
    import torchvision

    found: torch.nn.Module = torchvision.models.get_model(name, **{"weights": None, **kwargs})
    return found


def preset_of(
    library: str, name: str, folder: str, *, untrained: bool, notes: list[str]
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a published module, and what is known of it: "inputs", "image" (how pictures are prepared), "labels",
    "accuracy", "published", "untrained".  Raises ValueError if its weights cannot be had and `untrained` is false."""
    if library == "torchvision":
        return _torchvision(name, untrained=untrained, notes=notes)
    if library == "timm":
        return _timm(name, untrained=untrained, notes=notes)
    return _transformers(name, folder, untrained=untrained, notes=notes)


def _torchvision(name: str, *, untrained: bool, notes: list[str]) -> tuple[torch.nn.Module, dict[str, Any]]:
    import torch
    import torchvision

    from clover.families import published as files
    from clover.types import PublishedWeights

    module = _make("torchvision", name)
    choices = torchvision.models.get_model_weights(name)
    weights = getattr(choices, "DEFAULT", None)
    if weights is None:
        raise ValueError(f"torchvision publishes no weights for {name}: build it in a module of yours")
    meta, shown = weights.meta, weights.transforms()
    digest = Path(weights.url).stem.rpartition("-")[2]
    published = PublishedWeights(url=weights.url, sha256=digest)
    preset: dict[str, Any] = {
        "inputs": [TensorSpec(name="pixels", datatype="FP32", shape=(3, shown.crop_size[0], shown.crop_size[0]))],
        "image": {
            "resize": shown.resize_size[0],
            "size": shown.crop_size[0],
            "mean": list(shown.mean),
            "std": list(shown.std),
            "method": shown.interpolation.value,
        },
        "labels": list(meta["categories"]),
        "accuracy": {
            "value": meta["_metrics"]["ImageNet-1K"]["acc@1"],
            "metric": "top1",
            "source": "torchvision, ImageNet's 50,000 validation images",
        },
        "published": {"url": published.url, "sha256": published.sha256},
    }
    if not files.place_of(published).is_file():
        try:
            files.fetch(published)
        except OSError as error:
            _refuse_untrained(f"the weights of {name} cannot be fetched ({error})", untrained, notes, name)
            return module, {**preset, "untrained": True}
    module.load_state_dict(torch.load(files.file_of(published), map_location="cpu", weights_only=True))
    return module, preset


def _timm(name: str, *, untrained: bool, notes: list[str]) -> tuple[torch.nn.Module, dict[str, Any]]:
    from timm.data.config import resolve_model_data_config

    module = _make("timm", name)
    data: dict[str, Any] = resolve_model_data_config(module)
    side = data["input_size"][1]
    preset: dict[str, Any] = {
        "variant": name.partition(".")[0],
        "inputs": [TensorSpec(name="pixels", datatype="FP32", shape=tuple(data["input_size"]))],
        "image": {
            "resize": int(side / data["crop_pct"]),
            "size": side,
            "mean": list(data["mean"]),
            "std": list(data["std"]),
            "method": data["interpolation"] if data["interpolation"] in ("bilinear", "bicubic") else "bicubic",
        },
    }
    try:
        module = _make("timm", name, pretrained=True)
    except Exception as error:  # the hub's client raises its own kinds
        reason = " ".join(str(error).split())[:160]
        _refuse_untrained(f"the weights of {name} cannot be fetched ({reason})", untrained, notes, name)
        preset["untrained"] = True
    return module, preset


def _transformers(
    name: str, folder: str, *, untrained: bool, notes: list[str]
) -> tuple[torch.nn.Module, dict[str, Any]]:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name)
        tokeniser = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"transformers finds neither a folder nor a model {name!r} ({reason})") from error
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"{name} is a {', '.join(kinds) or 'model without a head'}: only classifiers of texts "
            "(...ForSequenceClassification) are written from a name; give a function that builds it, module:function"
        )
    preset: dict[str, Any] = {}
    try:
        module = AutoModelForSequenceClassification.from_pretrained(name)
    except Exception as error:
        _refuse_untrained(
            f"the weights of {name} cannot be had ({' '.join(str(error).split())[:160]})", untrained, notes, name
        )
        module = AutoModelForSequenceClassification.from_config(config)
        preset["untrained"] = True
    length = min(int(getattr(config, "max_position_embeddings", 512)), 512, int(tokeniser.model_max_length))
    names: list[str] = [
        one for one in ("input_ids", "attention_mask", "token_type_ids") if one in tokeniser.model_input_names
    ]
    tokeniser.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config.save_pretrained(str(Path(folder) / "config"))
    return _by_name(module, names), {
        "variant": Path(name).name.lower(),
        "inputs": [TensorSpec(name=one, datatype="INT64", shape=(length,)) for one in names],
        "text": {"length": length},
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "names": names,
        **preset,
    }


def _by_name(module: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """Return a module whose inputs are passed on by name, and whose answer is the logits."""
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(**dict(zip(names, inputs, strict=True))).logits
            return found

    return Classifier()


def _refuse_untrained(reason: str, untrained: bool, notes: list[str], name: str) -> None:
    """Note that a variant is untrained.  Raises ValueError unless that was allowed."""
    if not untrained:
        raise ValueError(f"{reason}: fetch them on a machine with a network, or say --untrained for random weights")
    notes.append(f"{name} is UNTRAINED, its answers mean nothing: {reason}")
