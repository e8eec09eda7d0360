"""Clover inside a FastAPI program: your routes answer clients, and Clover is asked in the same event loop.

Needs `pip install fastapi uvicorn`.  In a copy of this folder:

    $ python -m uvicorn app:app --port 8000  # leave it running; the rest in a second terminal
    $ head -c 784 /dev/zero | curl -s localhost:8000/classify --data-binary @-
"""

from contextlib import asynccontextmanager

import msgspec
import numpy as np
from fastapi import FastAPI, HTTPException, Request

import clover


@asynccontextmanager
async def lifespan(app):
    async with clover.Server("fashion", http=False) as server:  # ready here; drained at the end
        app.state.clover = server
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request):
    body = await request.body()
    if len(body) != 784:
        raise HTTPException(400, "one image of 28 x 28 bytes")
    image = np.frombuffer(body, np.uint8).reshape(1, 28, 28).astype(np.float32) / 255
    try:
        answer = await request.app.state.clover.ainfer({"image": image}, timeout_ms=2000)
    except clover.Overloaded as error:
        raise HTTPException(429, str(error)) from error
    except clover.DeadlineMissed as error:
        raise HTTPException(504, str(error)) from error
    return {"label": answer.label, "receipt": msgspec.to_builtins(answer.receipt)}
