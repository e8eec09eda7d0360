"""The data plane: shared memory, the zygote and its workers, and the router that feeds them."""
