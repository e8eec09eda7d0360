"""Whether answers are still what the profile says: sequential tests, feedback, and the reaction."""
