"""What trains: agents, prices, telemetry, checkpoints and the run folder."""
