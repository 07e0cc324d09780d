"""Agents that others wrote, on `rl_skip/Hops-v0`: one file for each library, called by `benchmarks/agents.py` in an environment of its own."""
