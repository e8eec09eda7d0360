"""The version of Clover, on the ground floor so that every module may import it; the packaging reads it here too."""

__version__ = "0.1.0"
