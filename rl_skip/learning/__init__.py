"""How a policy and the exits of its network learn: the exact gradient, prices and budgets, the supervised loss, calibration.

Knows batches of outputs, observations and labels, and nothing of who trains: the agents, or a person's own loop.
"""
