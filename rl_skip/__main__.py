"""`python -m rl_skip`."""

from rl_skip.cli.main import console

if __name__ == "__main__":
    console()
