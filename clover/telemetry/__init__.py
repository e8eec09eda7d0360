"""What Clover tells the outside about itself: log lines (`logs`), and metrics for Prometheus (`metrics`)."""
