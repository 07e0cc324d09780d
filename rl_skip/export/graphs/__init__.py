"""A routed network as graphs that run without rl_skip: a pack of them for batches, one for one row, and routes that all rows share."""
