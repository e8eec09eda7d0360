"""Share demand between the machines of a cluster, whose regions have grids of their own: pure, as all of planning."""
