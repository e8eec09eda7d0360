"""`clover new-family` and `clover import-triton`: arguments and printing only."""
