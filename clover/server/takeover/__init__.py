"""A new server takes the place of a running one, and no request fails: `clover serve --take-over`.

The two talk over a unix socket in the state folder (`listener`), by the messages of `messages`, in the order of
`protocol`.  `handover` is what the running server does for it, `succession` what the new one does.

Terms: the *running* server is the one that serves now; its *successor* is the one that was started with `--take-over`.
The *commit point* is the moment at which the running server learns that its successor accepts connections: before it,
whatever fails leaves the running server as it was; after it, the successor alone serves new connections.
"""
