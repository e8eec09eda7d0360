"""`clover simulate` and `clover plan`: arguments and printing only."""
