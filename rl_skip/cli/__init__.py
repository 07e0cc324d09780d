"""The command `rl-skip`, or `python -m rl_skip`: one function for each of its commands."""
