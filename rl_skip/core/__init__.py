"""What everything else is made of: inputs, costs, stacks, features, policy, reward, routing, tasks.

Imports nothing of the package outside this folder but `rl_skip.errors`.
"""
