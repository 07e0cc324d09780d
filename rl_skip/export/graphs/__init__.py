"""A routed network as graphs that run without rl_skip: a pack of ONNX graphs with its runner, one graph for one row, and routes that all rows share."""
