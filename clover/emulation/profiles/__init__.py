"""Profiles of emulated GPUs: calculated from the profile on CPU cores, or taken from a pace file."""
