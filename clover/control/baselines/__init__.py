"""What the same rows would have drawn otherwise, and so what was saved."""
