"""A cluster that is not there, before the production controller."""
