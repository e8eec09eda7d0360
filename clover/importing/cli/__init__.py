"""`clover family new` and `clover family import`: arguments and printing only."""
