"""What everything else is made of: inputs, costs, stacks, features, policy, reward, routing, tasks, and how files are read and written.

Imports nothing of the package outside this folder.
"""
