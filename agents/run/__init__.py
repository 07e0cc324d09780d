"""One run from its options to its folder: the learner and its warm-up, checkpoints, telemetry, the session, the final report."""
