"""Partitionable devices: which layouts exist, and instances made and unmade."""
