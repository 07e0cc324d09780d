"""The task hops: its labels against pointers followed by hand, its splits, and networks of tied layers around it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rl_skip
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.task import Split
from rl_skip.measure.runs import load_run
from rl_skip.nets.blocks import PointerEmbedding
from rl_skip.nets.module_stack import ModuleStack
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from tests.rl_skip.run_config import run_config

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TIED = NetworkConfig(layers=4, width=16, heads=2, tied=True)


def pointers_of(name: str, split: Split) -> Tensor:
    inputs = load_task(name).load(split).inputs
    assert isinstance(inputs, Tensor)
    return inputs


@pytest.mark.parametrize(("name", "longest"), [("hops", 8), ("hops-16", 16)])
def test_labels_are_where_pointers_followed_by_hand_end(name: str, longest: int) -> None:
    task = load_task(name)
    examples = task.load("validation")
    assert isinstance(examples.inputs, Tensor) and task.required_depth is not None
    for row, label, required_depth in zip(examples.inputs.tolist(), examples.labels.tolist(), task.required_depth(examples).tolist(), strict=True):
        target, (place, hop) = dict(row[:-1]), row[-1]
        assert sorted(target) == sorted(target.values()) == list(range(longest))
        assert 1 <= hop <= longest and required_depth == hop
        for _ in range(hop):
            place = target[place]
        assert place == label


def test_every_number_of_hops_is_equally_frequent() -> None:
    counts = pointers_of("hops", "train")[:, -1, 1].bincount(minlength=9)
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:] / 100_000, torch.full((8,), 1 / 8), atol=0.005, rtol=0)


def test_no_row_is_in_two_splits() -> None:
    rows = [tuple(row) for split in SPLITS for row in pointers_of("hops", split).flatten(1).tolist()]
    assert len(rows) == len(set(rows)) == 106_000
    assert [len(load_task("hops").load(split)) for split in SPLITS] == [100_000, 2_000, 4_000]


def test_rows_do_not_depend_on_the_global_seed_and_leave_it() -> None:
    rl_skip.tasks.hops._rows.cache_clear()
    first = pointers_of("hops", "test").clone()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rl_skip.tasks.hops._rows.cache_clear()
    assert torch.equal(pointers_of("hops", "test"), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_in_words() -> None:
    task = load_task("hops")
    examples = task.load("test").take(slice(0, 1))
    assert isinstance(examples.inputs, Tensor) and task.in_words is not None
    *pairs, (start, hop) = examples.inputs[0].tolist()
    assert task.in_words(examples) == [f"{hop} from {start}: {' '.join(f'{node}→{target}' for node, target in pairs)}"]


def test_hops_reads_no_data() -> None:
    with pytest.raises(UserError, match="brings its own data and does not read"):
        load_task("hops", str(Path(__file__)))


def test_the_mean_over_the_tokens_tells_how_many_hops() -> None:
    torch.manual_seed(0)
    embed, inputs = PointerEmbedding(8, 8).build(32), pointers_of("hops", "validation")
    with torch.no_grad():
        pooled = embed(inputs).mean(dim=1)
    assert pooled.shape == (2_000, 32) and embed(inputs[:3]).shape == (3, PointerEmbedding(8, 8).tokens, 32)
    hops = inputs[:, -1, 1]
    centre = torch.stack([pooled[hops == k].mean(dim=0) for k in range(1, 9)])
    assert torch.equal(torch.cdist(pooled, centre).argmin(dim=1) + 1, hops)


# --------------------------------------------------------------------------------------------------------- tied layers


def tied_run(folder: Path) -> ModuleStack:
    """A run folder as train.py leaves it, with a network that no training has seen."""
    task = load_task("hops")
    torch.manual_seed(3)
    stack = build_network(TIED, task.embedding, task.tokens, 8)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(16, 4), allow_exit=True))
    torch.nn.init.normal_(policy.fc_out.weight, std=1.0)
    described = network_to_json(TIED, task.embedding, task.tokens, 8)
    rl_skip.save(folder / "policy", policy, stack=stack, network=described, price=0.1)
    (folder / "config.json").write_text(json.dumps(run_config("hops", TIED)))
    assert isinstance(stack, ModuleStack)
    return stack


def test_tied_layers_are_one_layer() -> None:
    task = load_task("hops")
    tied = build_network(TIED, task.embedding, task.tokens, 8)
    single = build_network(NetworkConfig(1, 16, 2), task.embedding, task.tokens, 8)
    assert tied.depth == 4 and tied.layer_costs.tolist() == [0.25] * 4
    assert sum(map(torch.numel, tied.parameters())) == sum(map(torch.numel, single.parameters()))
    # Which of the layers run makes no difference, only how many.
    inputs = task.load("test").take(slice(0, 20)).inputs
    first, last = (routed_forward(tied, torch.tensor(route).bool(), inputs).outputs for route in ([1, 1, 1, 0], [1, 0, 1, 1]))
    assert torch.equal(first, last)


def test_an_export_of_tied_layers_comes_back_bit_for_bit_and_tied(tmp_path: Path) -> None:
    stack = tied_run(tmp_path)
    model, task = load_run(tmp_path)
    assert isinstance(model.stack, ModuleStack)
    assert all(layer is model.stack.layers[0] for layer in model.stack.layers)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(stack.parameters(), model.stack.parameters(), strict=True))
    inputs = task.load("test").take(slice(0, 50)).inputs
    outputs = model(inputs)
    assert model.last is not None
    assert torch.equal(outputs, routed_forward(stack.eval(), model.policy, inputs, price=0.1).outputs)
    assert len(model.last.route.unique(dim=0)) > 1


def test_files_from_before_there_were_tied_layers_are_read(tmp_path: Path) -> None:
    task = load_task("digits")
    config = NetworkConfig(4, 16, 2)
    network = network_to_json(config, task.embedding, task.tokens, 10)
    assert network is not None
    del network["tied"]
    stack = build_network(config, task.embedding, task.tokens, 10)
    rl_skip.save(tmp_path / "policy", JumpPolicy(JumpRules.reaching(ObservationLayout(16, 4))), stack=stack, network=network, price=0.1)
    described = run_config("digits", config)
    del described["network"]["tied"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    model, _ = load_run(tmp_path)
    assert isinstance(model.stack, ModuleStack) and model.stack.layers[0] is not model.stack.layers[1]


def test_the_original_module_cannot_be_tied() -> None:
    with pytest.raises(UserError, match="cannot be tied; set --stack blocks"):
        NetworkConfig(stack="skip-layer", tied=True)
