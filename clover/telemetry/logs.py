"""Logging for the command line: text for people, or one JSON object a line.  The library itself configures nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import IO

from clover.config import LogConfig

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """ "12:34:56 warning fleet: message", with the traceback below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format with the level in lower case and the logger without `clover.`."""
        name = record.name.removeprefix("clover.")
        return f"{record.asctime} {record.levelname.lower():<7} {name}: {record.message}"


class JsonFormatter(logging.Formatter):
    """One object a line: time (ISO 8601, UTC), level, logger, message, what `extra` held, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        whole, part = divmod(record.created, 1)
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int(part * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(config: LogConfig, stream: IO[str] | None = None) -> None:
    """Send everything from `config.level` on to `stream` (standard error).  Called once, by commands only."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if config.json else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    set_level(config.level)


def set_level(level: str) -> None:
    """Change the level of Clover's loggers and of everything else; works while serving."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("clover").setLevel(level.upper())
