"""Steps: what is done to rows before and after the model, declared in `family.toml` and reused.

    family = clover.load_family("efficientnet_lite")
    rows = steps.made_up(family, 2, numpy.random.default_rng(0))                        # two pictures
    (pixels,) = steps.as_modelled(family, family.variants[0], steps.as_sent(family, rows))    # [2, 3, 224, 224]

    step        what a step is
    images  texts  sounds  boxes  arithmetic      the steps there are, by subject
    pictures    what a picture's file says of itself, bounded before it is decoded
    pipeline    steps one after another, over the rows of a batch; tensors between them
    plan        from a declaration to what runs in the client, what in the worker
    samples     made-up rows that are valid for steps
    family      the steps of a family that was read
    client      the steps of a client, by a model's metadata

They run in workers, in the server while it measures a family, and in clients: nothing here imports torch or the server,
and what a step needs (pillow, tokenizers) is imported when it is used.
"""

from __future__ import annotations

from clover.steps.client import ClientSteps, PreparedRows
from clover.steps.family import (
    application_inputs,
    as_modelled,
    as_sent,
    describe_steps,
    made_up,
    plan_for,
    row_weights,
    thread_mapper,
    with_steps,
)
from clover.steps.pipeline import Applied, Pipeline
from clover.steps.plan import STEPS, StepPlan, plan_of
from clover.steps.step import BadRow, Column, stack_rows

__all__ = [
    "STEPS",
    "Applied",
    "BadRow",
    "ClientSteps",
    "Column",
    "Pipeline",
    "PreparedRows",
    "StepPlan",
    "application_inputs",
    "as_modelled",
    "as_sent",
    "describe_steps",
    "made_up",
    "plan_for",
    "plan_of",
    "row_weights",
    "stack_rows",
    "thread_mapper",
    "with_steps",
]
