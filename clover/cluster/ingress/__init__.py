"""HAProxy before the nodes of a cluster: its configuration, its process, and what it says."""
