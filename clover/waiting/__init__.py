"""Work that can wait: batch jobs, whose rows run in the clean hours of the grid, and never late."""
