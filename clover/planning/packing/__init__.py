"""Which variants run on which slices: layouts, configurations, batching, and bounds."""
