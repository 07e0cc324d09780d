"""`python -m rl_skip`."""

from rl_skip.cli import console

if __name__ == "__main__":
    console()
