"""The nodes of a cluster: their agents, and the servers that these start, find again and end."""
