"""A new server takes the place of a running one, and no request fails: `clover serve --take-over`.

    successor                                          running server
    1. TakeOverRequest (version, addresses)        ->
                                                   <-  2. SocketOffer, with the listening sockets
    loads, plans, starts and warms workers             serves
    3. SuccessorReady                              ->
                                                   <-  4. TakeOverAllowed
    accepts on the same sockets
    5. SuccessorAccepting                          ->  accepts no more, answers what it received (`limits.drain_s`
    serves, accounts its own processes                 bounds it), closes its files, ends
    the connection ends: reads budgets and meters
    from the files, counts idle power, opens the ledger

The two talk over a unix socket in the state folder (`socket_file`).  The running server may say TakeOverRefused, with a
reason, in place of 2 and 4; the successor ends then.  After 4 only the successor decides.

If one of the two dies, the other serves.  Until 5 the running server has given nothing up: if the connection ends, it
serves on.  From 2 on the successor has the listening sockets: if the connection ends, it accepts once it is ready, and
clients that connect meanwhile wait.  If the running server gets SIGTERM after 2, it says 4 at once, and ends.

The end of the connection is the end of the running server, in order or not, as only its process holds the other end.

`handover` is what the running server does, `succession` what its successor does.
"""
