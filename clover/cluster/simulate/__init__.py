"""A simulated cluster, run by the production controller."""
