"""What the same rows would have used under BASE and under the best fixed mix, and so what was saved."""
