"""Serve from several machines: nodes on Ray, HAProxy before them, one controller that shares demand between regions."""
