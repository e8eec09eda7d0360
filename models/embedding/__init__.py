"""Vectors of texts whose nearness is that of their meaning, at three lengths.  See README.md in this folder."""
