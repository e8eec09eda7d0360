"""The solver: plans are made in a helper process of low priority, so that the event loop never waits for arithmetic.

`client` is the server's side, `process` the helper, `protocol` what they say to each other.
"""
