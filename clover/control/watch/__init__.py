"""What the controller checks each second: devices, SLO, and whether a new deployment does what was planned."""
