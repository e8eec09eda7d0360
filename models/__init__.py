"""The model families Clover ships, one folder each; installed as `clover.models`."""
