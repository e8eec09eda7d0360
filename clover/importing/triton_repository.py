"""A Triton repository: its models, each as a draft or with the reason why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clover.families.declaration import NAME
from clover.hints import printable
from clover.importing.draft import DraftError, FamilyDraft
from clover.importing.triton_models import CONFIG, OpenBounds, draft_of, read


class ImportedModel(NamedTuple):
    """A model by the name of its folder: its backend ("" if that is not known), and a draft or the reason why not."""

    name: str
    backend: str
    draft: FamilyDraft | None
    reason: str


def models_of(repository: Path, bounds: OpenBounds) -> Iterator[ImportedModel]:
    """Yield the models of a repository, sorted by name.  Raises DraftError if it has none."""
    if not repository.is_dir():
        raise DraftError(f"{repository} is no folder: name the folder that `tritonserver --model-repository` has")
    folders = [path for path in sorted(repository.iterdir()) if os.path.isdir(path) and not path.name.startswith(".")]
    if not folders:
        raise DraftError(f"{repository} holds no folders, so no models")
    if (repository / CONFIG).is_file():
        raise DraftError(
            f"{repository} is a model itself: name the repository, or `clover new-family --from {repository}`"
        )
    for folder in folders:
        backend, name = "", printable(folder.name)
        try:
            if not NAME.fullmatch(folder.name):
                raise DraftError("its folder's name is none of a family (A-Z a-z 0-9 . _ -): rename it")
            if not folder.resolve().is_relative_to(repository.resolve()):
                raise DraftError(f"it is {folder.resolve()}, outside of {repository}: name that with new-family --from")
            backend = read(folder, bounds).backend
            yield ImportedModel(name, backend, draft_of(folder, bounds), "")
        except DraftError as error:
            yield ImportedModel(name, backend, None, str(error))
