"""What a plan is predicted to do: services, shares, queues, energy, and the objective it is judged by."""
