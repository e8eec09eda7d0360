"""Clover's data plane beside reference servers and peers, over the same wire."""
