"""The front end over gRPC: the Open Inference Protocol v2 with Triton's extensions, into the same routers as HTTP.

It runs on the server's own event loop, as slots, routers and the worker table are that loop's.  grpcio has threads of
its own for sockets, and one that tells the loop what came (`PollerCompletionQueue`).  A second loop in a thread of its
own would share Python's lock with this one, and add two hand-overs a request.  In nine paired runs at 800 calls a
second beside HTTP, the two designs did not differ, neither in HTTP's latencies nor in CPU time a call.

grpcio is imported when a server with a gRPC port starts: after the zygote was forked, since threads and fork do not go
together.  Nothing forks from then on; other processes are spawned.

`messages` has the protocol's messages, `wire` cuts one up so that tensors are not copied, `infer` decodes and encodes
inferences, `asking` is one on its way, `calls` says who calls and how errors look, `service` and `health` are the
services, and `frontend` is the server.
"""
