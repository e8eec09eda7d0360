"""The router of one family: admission, routing, dispatch, completion."""
