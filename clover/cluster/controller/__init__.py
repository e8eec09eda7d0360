"""The controller of a cluster: what it knows of nodes and demand, and what it does to nodes and ingress."""
