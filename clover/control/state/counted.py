"""The rows, and the accuracy expected of them, with which an accuracy floor and a budget are compared.

The accuracy expected of an answer depends on how sure the variant was.  A client who chooses the inputs would therefore
choose the figure, so two kinds of rows count otherwise:

- rows of clients over their limit of escalations (`clover.runtime.guard.escalation_limit`) are left out;
- if a row's input came before (a probe, a health check, a benchmark), a cascade's answer to it counts with the accuracy
  that the profile gives to any row there.

What is reported as served includes all rows, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 0.005
"""Percent points that show in what is printed."""


def counted(observed: Mapping[str, float]) -> tuple[float, float] | None:
    """Return the rows that count of a family's live figures, and the sum of the accuracy (percent) expected of each;
    None if that is unknown."""
    accuracy = observed.get("accuracy_served")
    if accuracy is None:
        return None
    rows = observed.get("rows", 0.0)
    total = rows * accuracy - observed.get("repeated_surplus", 0.0) - observed.get("left_out_accuracy_rows", 0.0)
    return rows - observed.get("left_out_rows", 0.0), total


def counted_accuracy(observed: Mapping[str, float]) -> float | None:
    """Return the mean accuracy (percent) expected of the rows that count; None if that is unknown."""
    rows, total = counted(observed) or (0.0, 0.0)
    return total / rows if rows > 0.0 else None


def why_apart(observed: Mapping[str, float]) -> str:
    """Return how the rows that count differ from those that were served, in words; "" if no figure shows it."""
    judged, reasons = counted_accuracy(observed), []
    if judged is None or abs(judged - observed["accuracy_served"]) < SHOWN:
        return ""
    if observed.get("repeated_rows"):
        reasons.append("if a repeated input counts as any other")
    if observed.get("left_out_rows"):
        reasons.append("without clients over their limit")
    return ", ".join(reasons)
