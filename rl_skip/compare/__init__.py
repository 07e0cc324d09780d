"""Honest measurement: a policy beside its rivals, the oracle, and the question whether it looks at its input."""
