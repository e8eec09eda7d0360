"""The commands of `clover`: arguments and printing only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from clover.errors import CloverError
from clover.hints import did_you_mean


class CommandRefused(CloverError):
    """What a command asks for is refused: by a server, with the HTTP `status` of its answer, or (0) by the command."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, whose errors name the nearest option or choice.  Options are not to be abbreviated: `--f` is
    too little to have said `--force`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._words: list[str] = []

    def parse_known_args(  # type: ignore[override]  # as below
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Return what the command line says, and the words that no option takes."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(  # type: ignore[override]  # one signature for the overloads of argparse
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Return what the command line says; exit with 2 if it cannot be read."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return given

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End the process with 2, naming the arguments that no option takes and the option that was probably meant."""
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        hint = did_you_mean(flags[0], self._option_string_actions) if flags else ""
        self.error(f"unrecognised arguments: {' '.join(unknown)}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else [str(choice) for choice in action.choices]
        if choices is not None and value not in choices:
            at = self._words.index(value) if value in self._words else 0
            before = self._words[at - 1].partition("=")[0] if at else ""
            unknown = before.startswith("--") and before not in ("--", *self._option_string_actions)
            if unknown:  # and was to take the value
                self.refuse([before])
            hint = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"there is no {value!r}{hint}; choose from {', '.join(choices)}")
