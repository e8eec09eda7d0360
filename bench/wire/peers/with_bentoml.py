"""BentoML: one service, adaptive batching.

A batchable method takes lists and answers with lists, while the wire has one document a request: the types of the two
put that into a list of one and take it out again.  The composition that the documentation shows instead, a service for
the wire before one that batches, loses requests (1.4.40: its client is renewed every hundred calls, whatever is under
way).  How long a batch waits is BentoML's own estimate, which follows the waits it saw before; it offers no way to
leave that out.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import bentoml
from pydantic import BeforeValidator, PlainSerializer

from bench.wire.peers import FOLDER
from bench.wire.peers.common import answer, given, model_of, work_of

_GIVEN = "BENCH_WORKLOAD"  # BentoML's process has another command line
WORK = work_of(os.environ.get(_GIVEN, "w1"))

Documents = Annotated[list[dict[str, Any]], BeforeValidator(lambda document: [document])]
Answers = Annotated[list[dict[str, Any]], PlainSerializer(lambda answers: answers[0])]


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Model:
    """One of the workloads."""

    def __init__(self) -> None:
        self.run = model_of(WORK)

    @bentoml.api(  # type: ignore[untyped-decorator]
        route=f"/v2/models/{WORK.family.name}/infer", batchable=True, max_batch_size=WORK.family.max_batch
    )
    def infer(self, documents: Documents, /) -> Answers:
        """Answer a batch that BentoML made."""
        answers = self.run(WORK.gather(documents))
        return [answer(WORK, each["id"], row) for each, row in zip(documents, answers, strict=True)]


if __name__ == "__main__":
    work, port = given()
    words = ["bentoml", "serve", "bench.wire.peers.with_bentoml:Model", "--host", "127.0.0.1", "--port", str(port)]
    own = {_GIVEN: work.name, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(FOLDER / "bentoml" / "home")}
    os.execve(sys.executable, [sys.executable, "-m", *words], {**os.environ, **own})
