"""Agents that others wrote on `rl_skip/Hops-v0`: one table with reward, steps and share of the optimum.

    python benchmarks/agents.py
    python benchmarks/agents.py --agents ppo dqn --steps 100000 --seeds 0 1
    python benchmarks/agents.py --agents cleanrl-ppo --cleanrl path/to/cleanrl/ppo.py

Each library gets an environment of its own, in which what this one has is seen too, so that PyTorch is not installed again; its own packages win.
It is deleted when its agents are done, unless --keep is given. What was measured is kept in --out and not done again. CleanRL is no package:
its file is given by its path, https://github.com/vwxyzjn/cleanrl/blob/master/cleanrl/ppo.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.outside.cleanrl import SCRIPT
from benchmarks.outside.play import optimum

TOP = Path(__file__).resolve().parents[1]
PACKAGES = {
    "sb3": ["stable-baselines3", "sb3-contrib"],
    "cleanrl": ["tyro", "tensorboard", "moviepy"],
    "tianshou": ["tianshou>=2"],
    "torchrl": ["torchrl"],
    "rllib": ["ray[rllib]"],
}
"""What is installed for each library."""
AGENTS = {
    **dict.fromkeys(("ppo", "a2c", "dqn", "trpo", "qr-dqn", "ars", "recurrent-ppo", "maskable-ppo", "maskable-ppo-recipe"), "sb3"),
    "cleanrl-ppo": "cleanrl",
    "tianshou-ppo": "tianshou",
    "torchrl-ppo": "torchrl",
    "rllib-ppo": "rllib",
}
"""The library of each agent."""


def make_environment(folder: Path, packages: list[str]) -> Path:
    """A virtual environment with packages, in which those of the calling one are seen besides. Returns its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        venv.create(folder, with_pip=True, clear=True)
        own = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
        own.joinpath("caller.pth").write_text(sysconfig.get_path("purelib") + "\n")
        constraints = folder / "constraints.txt"
        constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", constraints, *packages], check=True)
        folder.joinpath(".ready").touch()
    return python


def measured(agent: str, steps: int, seed: int, out: Path, cleanrl: Path | None) -> dict[str, float] | None:
    """What an agent has on the test rows, trained where it was not before; None where it failed, which its log explains."""
    library, result = AGENTS[agent], out / f"{agent}-{steps}-{seed}.json"
    if not result.is_file():
        python = make_environment(out / "environments" / library, PACKAGES[library])
        folder = out / "work" / f"{agent}-{steps}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1", **({} if cleanrl is None else {SCRIPT: str(cleanrl.resolve())})}
        command = [python, "-m", "benchmarks.outside.worker", library, agent, str(steps), str(seed), result.resolve()]
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run(command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            print(f"{agent}, seed {seed}: failed, see {folder / 'log.txt'}", file=sys.stderr)
            return None
    found: dict[str, float] = json.loads(result.read_text())
    return found


def main() -> None:
    """Trains what is not there yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS), metavar="AGENT", help=", ".join(AGENTS))
    parser.add_argument("--steps", type=int, default=500_000, help="steps of the environment that each is trained for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cleanrl", type=Path, help="CleanRL's ppo.py; without it cleanrl-ppo is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/agents"), help="where what was measured is kept")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    arguments = parser.parse_args()
    if arguments.cleanrl is not None and not arguments.cleanrl.is_file():
        parser.error(f"there is no file {arguments.cleanrl}; set --cleanrl to CleanRL's ppo.py")
    best = optimum()["reward"]
    print(f"optimum: reward {best:.4f}\n\n| agent | library | seed | steps | seconds | reward | share of the optimum | accuracy | compute |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for agent in arguments.agents:
        if AGENTS[agent] == "cleanrl" and arguments.cleanrl is None:
            print("cleanrl-ppo: left out, set --cleanrl to CleanRL's ppo.py", file=sys.stderr)
            continue
        for seed in arguments.seeds:
            found = measured(agent, arguments.steps, seed, arguments.out, arguments.cleanrl)
            if found is not None:
                reward = f"{found['reward']:.3f} | {found['reward'] / best:.1%} | {found['accuracy']:.1%} | {found['compute']:.3f}"
                print(f"| {agent} | {AGENTS[agent]} | {seed} | {found['steps']:,.0f} | {found['seconds']:.0f} | {reward} |", flush=True)
    if not arguments.keep:
        shutil.rmtree(arguments.out / "environments", ignore_errors=True)


if __name__ == "__main__":
    main()
