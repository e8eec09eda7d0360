"""Fashion-MNIST in five rungs of quality and cost: the default family.  See README.md in this folder."""
