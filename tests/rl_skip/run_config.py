"""The file `config.json` of a run, as training leaves it, for tests that write a run by hand."""

from dataclasses import asdict
from typing import Any

from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import DEFAULTS


def run_config(task: str, network: NetworkConfig, data: str | None = None) -> dict[str, Any]:
    """The fields of it that reading a run asks for."""
    return {
        "format_version": 2,
        "task": {"name": task, "data": data, "options": asdict(DEFAULTS)},
        "network": asdict(network),
        "agent": "reinforce",
        "pricing": {"reward": "linear"},
        "policy": {"feature": []},
    }
