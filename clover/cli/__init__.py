"""The commands of `clover`: arguments and printing only."""
