"""Counting right answers: intervals, agreement, and what counts as the answer to a row."""

from __future__ import annotations

from clover.confidence import agreement, answers
from clover.runtime.guard.drift import wilson

__all__ = ["agreement", "answers", "wilson"]
