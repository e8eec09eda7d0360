"""Fashion-MNIST in five variants of quality and cost: the default family.  See README.md in this folder."""
