"""A run with readouts at given computes: its policy beside one entropy threshold for all exits of the same network.

    python benchmarks/exits.py RUN [--computes 0.25 0.33 0.5 0.67]

Both are chosen on validation data, the price or the threshold of the best accuracy within the compute, and looked up on test data. A pass
through all layers of each split says what every exit answers, so no other pass is needed.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from agents.policy.exact import exit_pass
from rl_skip.core.batches import in_batches
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Examples, Split
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare.measured import EntropyExits, entropy
from rl_skip.measure.runs import load_run

BATCH = 64
PRICES = [0.005 * 1.05**n for n in range(130)]
THRESHOLDS = [0.002 * 1.06**n for n in range(110)]


@dataclass(frozen=True)
class Exits:
    """What every exit of a network does on the N rows of a split."""

    score: Tensor
    """(N, L), of leaving after each layer."""
    entropy: Tensor
    """(N, L - 1), of the readouts, in nats."""
    observations: Tensor
    """(N, L - 1, S), what the policy sees, but for the price."""
    policy_compute: Tensor
    """(N, L), relative compute of leaving after each layer, where the policy decides."""
    threshold_compute: Tensor
    """(N, L), the same where readouts alone are run."""

    def at(self, leaves: Tensor, compute: Tensor) -> tuple[float, float]:
        """Mean score and compute where each row leaves after the first layer that `leaves`, (N, L - 1) bool, names, else after the last."""
        score, spent = self.rows_at(leaves, compute)
        return score.double().mean().item(), spent.double().mean().item()

    def rows_at(self, leaves: Tensor, compute: Tensor) -> tuple[Tensor, Tensor]:
        """As `at`, of each row: two of (N,)."""
        last = torch.full((len(leaves),), leaves.shape[1])
        layer = torch.where(leaves.any(dim=1), leaves.float().argmax(dim=1), last).unsqueeze(1)
        return self.score.gather(1, layer).squeeze(1), compute.gather(1, layer).squeeze(1)


def exits_of(model: SkipModel, examples: Examples, score: Callable[[Tensor, Tensor], Tensor]) -> Exits:
    """One pass of the policy's, and one of thresholds that nobody meets, through all layers."""

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor, ...]:
        exits = exit_pass(model.stack, model.policy, batch.inputs, torch.ones(len(batch), device=batch.labels.device))
        spent = routed_forward(model.stack, EntropyExits(0.0), batch.inputs).spent
        scores = torch.stack([score(outputs, batch.labels) for outputs in exits.answers], dim=1)
        entropies = torch.stack([entropy(outputs) for outputs in exits.answers[:-1]], dim=1)
        return scores, entropies, exits.observations, exits.compute, spent.cumsum(dim=1)

    return Exits(*in_batches(run, examples, BATCH, model.stack, model.policy))


def policy_leaves(model: SkipModel, exits: Exits, price: float) -> Tensor:
    """(N, L - 1) bool, where the policy would leave at a price."""
    observations = exits.observations.clone()
    observations[..., -1] = model.rules.layout.scale_price(torch.tensor(price))
    return model.policy(observations.flatten(0, 1)).argmax(dim=1).view(observations.shape[:2]) > 0


@torch.no_grad()
def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--computes", type=float, nargs="+", default=[0.25, 0.33, 0.5, 0.67])
    options = parser.parse_args()
    model, task = load_run(options.run, data=options.data)
    splits: tuple[Split, Split] = ("validation", "test")
    validation, test = (exits_of(model, task.load(split), task.score) for split in splits)
    print(f"| {task.score_name} of all rows that leave after layer |", " | ".join(str(k + 1) for k in range(model.stack.depth)), "|")
    print("| --- |" + " ---: |" * model.stack.depth)
    print("| test |", " | ".join(f"{score:.1%}" for score in test.score.double().mean(dim=0).tolist()), "|\n")

    def by_policy(exits: Exits, price: float) -> tuple[float, float]:
        return exits.at(policy_leaves(model, exits, price), exits.policy_compute)

    def by_threshold(exits: Exits, threshold: float) -> tuple[float, float]:
        return exits.at(exits.entropy < threshold, exits.threshold_compute)

    print("| compute allowed |", " | ".join(f"{compute:g}" for compute in options.computes), "|")
    print("| --- |" + " ---: |" * len(options.computes))
    for name, way, settings in (("policy", by_policy, PRICES), ("one threshold for all exits", by_threshold, THRESHOLDS)):
        points = [(way(validation, setting), setting) for setting in settings]
        cells = []
        for allowed in options.computes:
            within = [(score, -compute, setting) for (score, compute), setting in points if compute <= allowed]
            score, compute = way(test, max(within)[2]) if within else (None, None)
            cells.append("" if score is None else f"{score:.1%} @ {compute:.2f}")
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
