"""What the controller checks at each look: devices, SLO, and whether a new deployment does what was planned."""
