"""The worker processes as the server holds them: pool, fleet, standby."""
