"""HAProxy before the nodes of a cluster: its configuration, its process, and its answers."""
