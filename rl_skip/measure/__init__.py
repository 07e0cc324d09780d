"""Honest measurement: reading a run folder, evaluation, the guarantee, comparison with baselines, pruning to a fixed route."""
