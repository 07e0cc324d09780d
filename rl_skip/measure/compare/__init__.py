"""Honest measurement: a policy beside its baselines, the oracle, and the question whether it looks at its input."""
