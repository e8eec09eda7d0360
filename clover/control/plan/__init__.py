"""From a request for a plan to workers and routing in force, and the record of how it ended."""
