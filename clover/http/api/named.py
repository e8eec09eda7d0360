"""Which model a name and a version lead to, and the endpoint that answers under that name: for every front end."""

from __future__ import annotations

from collections.abc import Mapping

from clover.config import LimitsConfig
from clover.errors import NotFound
from clover.http.inference import InferEndpoint, SplitEndpoint
from clover.interfaces import Model, SplitModel

_UNKNOWN_MODEL = "Request for unknown model: no model of that name and version is served"


def find_model(models: Mapping[str, Model], name: str, version: str | None = None) -> tuple[str, Model]:
    """Return the key in `models` of the model that clients call by `name` and, unless it is None, `version`, and the
    model; raises NotFound."""
    model = models.get(name)
    if model is None:
        raise NotFound(_UNKNOWN_MODEL)
    if version is None:
        return name, model
    exact = models.get(f"{name}@{version}")  # while a new version is being rolled out
    if exact is not None:
        return f"{name}@{version}", exact
    if version != model.spec.version:
        raise NotFound(_UNKNOWN_MODEL)
    return name, model


def client_name(key: str) -> str:
    """Return the name that clients know a model by: NAME of NAME@VERSION."""
    return key.partition("@")[0]


def list_versions(models: Mapping[str, Model]) -> list[tuple[str, Model]]:
    """Return every version of every model, with the name that clients know it by."""
    return [(client_name(key), model) for key, model in models.items() if not isinstance(model, SplitModel)]


def endpoint_of(key: str, model: Model, limits: LimitsConfig) -> InferEndpoint:
    """Return a new endpoint of the model with that key."""
    if isinstance(model, SplitModel):
        return SplitEndpoint(client_name(key), model, limits)
    return InferEndpoint(client_name(key), model, limits)
