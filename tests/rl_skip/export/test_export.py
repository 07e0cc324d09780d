import copy
import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ModuleStack, ObservationLayout, SkipLayer, UserError
from rl_skip.core.features import default_features
from rl_skip.core.forward import routed_forward
from rl_skip.core.reward import LINEAR
from rl_skip.core.seal import seal
from rl_skip.export import policy_folder
from rl_skip.export.policy_folder import copy_export
from rl_skip.nets.blocks import FrameEmbedding, PatchEmbedding
from rl_skip.nets.gated import AdapterBody
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json

WIDTH, DEPTH, PRICE = 16, 4, 0.1
PROMISE = rl_skip.Guarantee("expectation", 0.01, PRICE, rows=360)
TABLE = [(1.0, 0.3, 0.8), (0.1, 0.5, 0.9), (0.01, 0.9, 0.95)]
IMAGES = PatchEmbedding(height=8, image_width=8, channels=1, patch=1, patch_width=8, overlap=1)
FRAMES = FrameEmbedding(frames=10, features=3, stride=2)
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gymnasium", "stable_baselines3", "sb3_contrib", "tensorboard", "envs", "agents"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
"""


def outspoken(policy):
    """A policy whose jumps differ from row to row, unlike those of a fresh one."""
    nn.init.normal_(policy.fc_out.weight, std=1.0)
    return policy.eval()


def make_policy(stack, **options):
    layout = ObservationLayout(stack.width, stack.depth, features=default_features(stack.has_memory))
    return outspoken(JumpPolicy(JumpRules.reaching(layout, **options)))


def make_network(config, embedding=IMAGES):
    torch.manual_seed(1)
    stack = build_network(config, embedding, embedding.tokens, 10).eval()
    return stack, network_to_json(config, embedding, embedding.tokens, 10)


def make_case(kind):
    """A stack with its description, a policy, and inputs."""
    torch.manual_seed(2)
    images, tokens = torch.randn(40, 8, 8), torch.randn(40, 5, WIDTH)
    frames = {"frames": torch.randn(40, 10, 3), "mask": torch.arange(10) < torch.randint(1, 11, (40, 1))}
    if kind == "skip-layer-module":
        layer = SkipLayer(WIDTH, 2, DEPTH, body="attention", keys=8, threshold=0.9, tokens=5, price=0.3).eval()
        outspoken(layer.policy)
        return layer, None, layer.policy, {"x": tokens, "mask": torch.arange(5) < torch.randint(1, 6, (40, 1))}
    if kind == "own":
        layers = [nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH)]
        stack = ModuleStack(nn.Linear(3, WIDTH), layers, nn.Linear(WIDTH, 2), width=WIDTH, layer_flops=[1.0, 2.0, 3.0, 4.0]).eval()
        return stack, None, make_policy(stack), torch.randn(40, 3)
    config, embedding, inputs = {
        "blocks": (NetworkConfig(DEPTH, WIDTH, 2), IMAGES, images),
        "blocks-exit-input": (NetworkConfig(DEPTH, WIDTH, 2, dropout=0.1), IMAGES, images),
        "headed-attention": (NetworkConfig(DEPTH, WIDTH, 2, stack="skip-layer"), IMAGES, images),
        "headed-adapter": (NetworkConfig(DEPTH, WIDTH, 2, stack="skip-layer", body="adapter"), FRAMES, frames),
    }[kind]
    stack, network = make_network(config, embedding)
    options = {"allow_exit": True, "scope": "input", "hidden": 24} if kind == "blocks-exit-input" else {}
    return stack, network, make_policy(stack, **options), inputs


KINDS = ["blocks", "blocks-exit-input", "headed-attention", "headed-adapter", "skip-layer-module"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    stack, network, policy, _ = make_case("blocks")
    folder = tmp_path_factory.mktemp("pristine") / "policy"
    trained_on = {"task": "digits", "seed": 0}
    rl_skip.save(folder, policy, stack=stack, network=network, price=PRICE, price_table=TABLE, trained_on=trained_on, guarantee=PROMISE)
    return folder


@pytest.fixture
def export(tmp_path, pristine):
    return Path(shutil.copytree(pristine, tmp_path / "policy"))


def edit(folder, change):
    file = folder / "policy.json"
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))
    seal(folder)  # whoever edits a folder on purpose seals it too


def one_line(raised):
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_gives_the_same_outputs_and_routes_bit_for_bit(tmp_path, kind):
    stack, network, policy, inputs = make_case(kind)
    with torch.no_grad():
        expected = routed_forward(stack, policy, inputs, price=PRICE)
    assert len(expected.route.unique(dim=0)) > 1, "the rows must not all take one route"
    rl_skip.save(tmp_path / "a", policy, stack=stack, network=network, price=PRICE)
    state = torch.get_rng_state()
    model = rl_skip.load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state), "loading must not touch the caller's random numbers"
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        outputs = model(inputs)
    assert torch.equal(outputs, expected.outputs)
    for name in ("route", "jumps", "decided", "log_probs", "spent"):
        assert torch.equal(getattr(model.last, name), getattr(expected, name)), name
    assert asdict(model.rules) == asdict(policy.rules)
    assert model.price == PRICE


def test_an_empty_batch_and_a_budget_that_is_no_number_are_refused_in_a_line(export):
    model = rl_skip.load(export)
    with pytest.raises(UserError, match="a batch holds at least one row"):
        model(torch.randn(0, 8, 8))
    with pytest.raises(UserError, match="a budget is a mean compute in .*, got half"):
        model.budget = "half"
    model.budget = torch.tensor(0.6)
    assert model.budget == pytest.approx(0.6)


def test_a_process_without_the_training_libraries_gives_the_same(tmp_path):
    expected = {}
    for kind in KINDS:
        stack, network, policy, inputs = make_case(kind)
        with torch.no_grad():
            expected[kind] = routed_forward(stack, policy, inputs, price=PRICE)
        rl_skip.save(tmp_path / kind, policy, stack=stack, network=network, price=PRICE)
        save_file({"alone": inputs} if isinstance(inputs, torch.Tensor) else inputs, tmp_path / f"{kind}.inputs")
    script = f"""
from safetensors.torch import load_file, save_file
import rl_skip, rl_skip.cli.main, rl_skip.measure.runs
for kind in {KINDS}:
    inputs = load_file(f"{{kind}}.inputs")
    model = rl_skip.load(kind)
    outputs = model(inputs.get("alone", inputs))
    save_file({{"outputs": outputs.detach(), "route": model.last.route}}, f"{{kind}}.found")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(rl_skip.__file__).parents[1]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", REFUSE + script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        found = load_file(tmp_path / f"{kind}.found")
        assert torch.equal(found["route"], expected[kind].route), kind
        assert torch.equal(found["outputs"], expected[kind].outputs), kind


def test_the_import_hook_of_these_tests_refuses():
    done = subprocess.run([sys.executable, "-c", REFUSE + "import gymnasium"], capture_output=True, text=True)
    assert done.returncode != 0 and "not to be imported" in done.stderr


def test_a_skip_layer_is_saved_by_itself_and_comes_back_as_a_module(tmp_path):
    layer, _, policy, inputs = make_case("skip-layer-module")
    layer.gates[1].threshold.fill_(0.7)
    expected = layer(inputs["x"], inputs["mask"])
    rl_skip.save(tmp_path / "a", layer)
    model = rl_skip.load(tmp_path / "a")
    assert isinstance(model.stack, SkipLayer)
    assert model.price == layer.price == 0.3
    assert torch.equal(model(inputs), expected)
    assert torch.equal(model.stack(inputs["x"], inputs["mask"]), expected), "the layer inside must carry the policy too"
    assert model.stack.policy is model.policy
    assert not any(name.startswith("policy.") for name in load_file(tmp_path / "a" / "model.safetensors"))


def test_a_skip_layer_with_a_body_of_ones_own_asks_for_it(tmp_path):
    layer = SkipLayer(WIDTH, 2, DEPTH, body=lambda i: AdapterBody(WIDTH, True)).eval()
    rl_skip.save(tmp_path / "a", layer)
    with pytest.raises(UserError, match="does not describe its network"):
        rl_skip.load(tmp_path / "a")
    other = SkipLayer(WIDTH, 2, DEPTH, body=lambda i: AdapterBody(WIDTH, True))
    x = torch.randn(6, 5, WIDTH)
    assert torch.equal(rl_skip.load(tmp_path / "a", other)(x), layer(x))


def test_a_stack_of_ones_own_takes_the_exported_weights(tmp_path):
    stack, _, policy, inputs = make_case("own")
    rl_skip.save(tmp_path / "a", policy, stack=stack, price=PRICE)
    with pytest.raises(UserError, match="pass the network"):
        rl_skip.load(tmp_path / "a")
    other = copy.deepcopy(stack)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(rl_skip.load(tmp_path / "a", other)(inputs), routed_forward(stack, policy, inputs, price=PRICE).outputs)


def test_without_weights_the_given_stack_keeps_its_own(tmp_path):
    stack, _, policy, inputs = make_case("own")
    rl_skip.save(tmp_path / "a", policy, stack=stack, price=PRICE, weights=False)
    assert not (tmp_path / "a" / "model.safetensors").exists()
    nn.init.normal_(stack.head.weight)
    assert torch.equal(rl_skip.load(tmp_path / "a", stack)(inputs), routed_forward(stack, policy, inputs, price=PRICE).outputs)


def test_the_policy_alone(export):
    _, _, policy, _ = make_case("blocks")
    loaded = rl_skip.load_policy(export)
    observation = torch.rand(20, policy.rules.layout.size)
    assert torch.equal(loaded(observation), policy(observation))
    assert loaded.rules == policy.rules and not loaded.training


def test_the_folder_holds_no_pickle_and_its_json_has_the_documented_fields(export):
    assert sorted(file.name for file in export.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "model.safetensors",
        "policy.json",
        "policy.safetensors",
    ]
    for file in export.glob("*.safetensors"):
        size = int.from_bytes(file.read_bytes()[:8], "little")  # the format: length of a JSON header, the header, raw numbers
        json.loads(file.read_bytes()[8 : 8 + size])
    described = json.loads((export / "policy.json").read_text())
    sizes = {"hidden": 16, "position": 1, "compute": 1, "price": 1}
    parts = [{"name": name, "size": size} for name, size in sizes.items()]
    assert described["observation"] == {"features": parts, "price_low": 0.001, "price_high": 10.0, "readout_flops": 0.0}
    assert (described["format_version"], described["depth"], described["width"], described["max_jump"]) == (2, 4, 16, 2)
    assert (described["allow_exit"], described["policy_scope"], described["hidden"], described["price"]) == (False, "state", 128, PRICE)
    assert described["layer_costs"] == [0.25] * 4
    assert described["price_table"] == [{"price": p, "compute": c, "accuracy": a} for p, c, a in TABLE]
    assert described["reward"] == LINEAR.formula == "score − price · compute"
    assert described["trained_on"] == {"task": "digits", "seed": 0}
    assert described["versions"]["rl_skip"] == rl_skip.__version__
    assert described["network"]["embedding"]["kind"] == "patches"
    assert described.keys() == {
        "format_version", "observation", "depth", "width", "max_jump", "allow_exit", "jumps", "policy_scope", "hidden",
        "layer_costs", "price", "guarantee", "score_name", "price_table", "reward", "trained_on", "versions", "network",
    }  # fmt: skip


def test_the_card_tells_the_trade_off_and_how_to_load(export):
    card = (export / "README.md").read_text()
    assert "looks after every layer and jumps over up to " in card
    assert "| 0.01 | 0.900 | 0.9500 |" in card
    assert "- task: digits" in card
    assert 'rl_skip.load("path/to/this/folder")' in card


def test_a_guarantee_is_kept_with_its_kind(tmp_path, export):
    model = rl_skip.load(export, price=0.5)
    assert model.guarantee == PROMISE and json.loads((export / "policy.json").read_text())["guarantee"] == asdict(PROMISE)
    promised = "Guaranteed at price 0.1 (expectation): at most 0.01 of accuracy is lost against full depth, on average over the draw of 360"
    assert promised in (export / "README.md").read_text()
    confident = replace(PROMISE, kind="confidence")
    rl_skip.save(tmp_path / "confident", model.policy, stack=model.stack, price=PRICE, guarantee=confident)
    assert rl_skip.load(tmp_path / "confident", model.stack).guarantee == confident
    card = (tmp_path / "confident" / "README.md").read_text()
    assert "(confidence): at most 0.01 of accuracy is lost against full depth, with 95% confidence" in card
    rl_skip.save(tmp_path / "none", model.policy, stack=model.stack, price=PRICE)
    assert "uarantee" not in (tmp_path / "none" / "README.md").read_text()


def test_saving_refuses_a_folder_that_exists_and_overwrites_only_exports(tmp_path, export):
    stack, network, policy, inputs = make_case("blocks")
    before = {file.name: file.read_bytes() for file in export.iterdir()}
    with pytest.raises(UserError, match="exists"):
        rl_skip.save(export, policy, stack=stack, network=network, price=0.7)
    assert {file.name: file.read_bytes() for file in export.iterdir()} == before
    rl_skip.save(export, policy, stack=stack, network=network, price=0.7, overwrite=True)
    assert rl_skip.load(export).price == 0.7
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    (tmp_path / "precious" / "policy.json").write_text('{"Version": "2012-10-17", "Statement": []}')  # of somebody else
    with pytest.raises(UserError, match="not an exported policy"):
        rl_skip.save(tmp_path / "precious", policy, stack=stack, price=0.7, overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["policy", "network"])
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(tmp_path, part, bad, monkeypatch):
    stack, network, policy, _ = make_case("blocks")
    name, weight = next(iter({"policy": policy, "network": stack}[part].named_parameters()))
    weight.data.view(-1)[-1] = bad
    with pytest.raises(UserError, match=f"the {part} is not exported to .*: the weight {name} holds numbers that are not finite") as raised:
        rl_skip.save(tmp_path / "a", policy, stack=stack, network=network, price=PRICE)
    assert one_line(raised) and not (tmp_path / "a").exists()
    monkeypatch.setattr(policy_folder, "refuse_not_finite", lambda *_: None)  # as it was written before
    rl_skip.save(tmp_path / "a", policy, stack=stack, network=network, price=PRICE)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"the weight {name} holds numbers that are not finite") as raised:
        rl_skip.load(tmp_path / "a")
    assert one_line(raised)


@pytest.mark.parametrize("trained_on", [{"note": object()}, {"loss": math.nan}])
def test_a_failure_leaves_nothing_half_written(tmp_path, trained_on):
    stack, network, policy, _ = make_case("blocks")
    with pytest.raises(UserError, match="plain JSON"):
        rl_skip.save(tmp_path / "a", policy, stack=stack, network=network, price=PRICE, trained_on=trained_on)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_prices_that_are_none_are_refused(tmp_path, export, price):
    stack, network, policy, _ = make_case("blocks")
    with pytest.raises(UserError, match="a price is"):
        rl_skip.save(tmp_path / "a", policy, stack=stack, price=price)
    with pytest.raises(UserError, match="a price is"):
        rl_skip.load(export, price=price)
    with pytest.raises(UserError, match="a price is"):
        rl_skip.load(export).price = price


def test_the_budget_dial(export):
    model = rl_skip.load(export, budget=0.5)
    assert model.price == pytest.approx(0.1)
    model.budget = 0.4
    assert model.price == pytest.approx(10**-0.5)
    assert model.budget == pytest.approx(0.4)
    with pytest.raises(UserError, match="0.3000"):
        model.budget = 0.25
    assert model.budget == pytest.approx(0.4), "a refused budget must change nothing"
    with pytest.raises(UserError, match="exclude each other"):
        rl_skip.load(export, price=0.1, budget=0.5)


def test_a_price_reaches_the_policy(export):
    stack, _, policy, inputs = make_case("blocks")
    nn.init.normal_(policy.fc_in.weight, std=1.0)
    rl_skip.save(export, policy, stack=stack, network=make_case("blocks")[1], price=PRICE, overwrite=True)
    routes = {}
    for price in (0.001, 10.0):
        model = rl_skip.load(export, price=price)
        model(inputs)
        routes[price] = model.last.route
        assert torch.equal(model.last.route, routed_forward(stack, policy, inputs, price=price).route)
    assert not torch.equal(*routes.values())


def test_the_last_rollout_keeps_no_outputs_and_no_gradients(export):
    model = rl_skip.load(export)
    outputs = model(torch.randn(3, 8, 8))
    assert outputs.requires_grad
    assert model.last.outputs.numel() == 0
    assert not any(value.requires_grad for value in vars(model.last).values())


def field_paths():
    """Where each documented field stands, and values of a wrong type or range for it."""
    whole, number = [0, -1, 1.5, True, "4", None], [-0.5, math.nan, math.inf, True, "1", None, 10**400]
    flag, text = [0, 1, "true", None], [3, None, ["x"]]
    yield ("format_version",), whole
    for name in ("depth", "width", "max_jump", "hidden"):
        yield (name,), whole
    yield ("allow_exit",), flag
    yield ("jumps",), flag
    yield ("policy_scope",), [*text, "both"]
    yield ("price",), number
    yield ("guarantee",), [[], "expectation", 0.01]
    yield ("guarantee", "kind"), [*text, "certainty"]
    yield ("guarantee", "tolerance"), [*number, 0, 1.0]
    yield ("guarantee", "price"), number
    yield ("guarantee", "rows"), whole
    yield ("layer_costs",), [None, "x", [0.25] * 3, [0.25] * 5, {}, [0.5] * 4]
    yield ("layer_costs", 2), number
    yield ("observation",), [None, []]
    yield ("observation", "price_low"), [*number, 0, 10.0]
    yield ("observation", "price_high"), number
    yield ("observation", "readout_flops"), number
    yield ("observation", "features"), [None, {}, [], ["hidden"]]
    yield ("observation", "features", 0, "name"), [*text, "position", "unheard-of"]
    yield ("observation", "features", 0, "size"), [*whole, 17]
    yield ("score_name",), text
    yield ("price_table",), [None, {}, [3]]
    for name in ("price", "compute"):
        yield ("price_table", 1, name), number
    yield ("price_table", 1, "accuracy"), [*number, 1.5]
    yield ("reward",), text
    yield ("trained_on",), [None, []]
    yield ("versions",), [None, []]
    for name in ("rl_skip", "torch", "python"):
        yield ("versions", name), text
    yield ("network",), ["x", []]
    for name in ("layers", "width", "heads", "tokens", "classes"):
        yield ("network", name), whole
    yield ("network", "stack"), [*text, "tower"]
    yield ("network", "body"), [*text, "adaptor"]
    yield ("network", "dropout"), [*number, 1.0]
    yield ("network", "tied"), [1, "false", None]
    yield ("network", "embedding"), [None, []]
    yield ("network", "embedding", "kind"), [*text, "words"]
    for name in ("height", "image_width", "channels", "patch"):
        yield ("network", "embedding", name), whole
    yield ("network", "embedding", "overlap"), [-1, 0.5, None, True]
    yield ("network", "embedding", "patch_width"), [0, 1.5, "8"]


PATHS = list(field_paths())
YOUNGER = [("network", "tied"), ("score_name",), ("guarantee",)]
"""Fields that files of the first version do not have, and need not."""


def parent_of(described, path):
    for key in path[:-1]:
        described = described[key]
    return described


@pytest.mark.parametrize("path", [path for path, _ in PATHS if not isinstance(path[-1], int) and path not in YOUNGER], ids=str)
def test_every_field_that_is_missing_is_named(export, path):
    edit(export, lambda described: parent_of(described, path).pop(path[-1]))
    with pytest.raises(UserError) as raised:
        rl_skip.load(export)
    message = one_line(raised)
    assert str(path[-1]) in message and "missing" in message and "policy.json" in message


def test_a_file_without_a_younger_field_is_read_as_it_was_meant(export):
    before = rl_skip.load(export).stack.state_dict().keys()
    edit(export, lambda described: [parent_of(described, path).pop(path[-1]) for path in YOUNGER])
    assert rl_skip.load(export).stack.state_dict().keys() == before
    assert rl_skip.load(export).table.score_name == "accuracy"
    assert rl_skip.load(export).guarantee is None


@pytest.mark.parametrize(("path", "values"), PATHS, ids=[str(path) for path, _ in PATHS])
def test_every_field_of_a_wrong_type_is_named(export, path, values):
    good = (export / "policy.json").read_text()
    for value in values:
        (export / "policy.json").write_text(good)
        edit(export, lambda described, value=value: parent_of(described, path).__setitem__(path[-1], value))
        for load in (rl_skip.load, rl_skip.load_policy):
            with pytest.raises(UserError) as raised:
                load(export)
            message = one_line(raised)
            named = "features" if "features" in path else str(path[-1])
            assert named in message and "policy.json" in message, (value, message)


def test_every_field_of_the_file_is_tested(export):
    def leaves(value, path):
        if isinstance(value, dict) and path != ("trained_on",):
            return {path} | {leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))}
        return {path}

    described = json.loads((export / "policy.json").read_text())
    assert leaves(described, ()) - {()} <= {path for path, _ in PATHS}


SKIP_LAYER = {"kind": "x", "dims": 17, "layer": 5, "head": 0, "body": "x", "keys": 0, "threshold": 1.5, "tokens": True}
SKIP_LAYER |= {"memory_gate": 1, "jump_mixing": None}


@pytest.mark.parametrize(("name", "value"), SKIP_LAYER.items())
def test_every_field_of_a_skip_layer_is_checked(tmp_path, name, value):
    rl_skip.save(tmp_path / "a", make_case("skip-layer-module")[0])
    described = json.loads((tmp_path / "a" / "policy.json").read_text())
    assert described["network"].keys() == SKIP_LAYER.keys()
    for change in ({name: value}, None):
        network = {**described["network"], **change} if change else {key: one for key, one in described["network"].items() if key != name}
        (tmp_path / "a" / "policy.json").write_text(json.dumps({**described, "network": network}))
        with pytest.raises(UserError) as raised:
            rl_skip.load(tmp_path / "a")
        assert name in one_line(raised) or (name == "kind" and change is None and "network.layers is missing" in str(raised.value))


def test_an_older_format_is_refused_with_the_way_to_make_it_anew(export):
    edit(export, lambda described: described.update(format_version=1, observation={"layout": []}))
    with pytest.raises(UserError, match=r"format_version is 1, of an earlier rl_skip.* train the policy anew with train\.py") as raised:
        rl_skip.load(export)
    one_line(raised)


def test_a_newer_format_is_refused(export):
    edit(export, lambda described: described.update(format_version=3, hidden="renamed since"))
    with pytest.raises(UserError, match="format_version is 3, this rl_skip reads up to 2; upgrade"):
        rl_skip.load_policy(export)


@pytest.mark.parametrize(("config", "field"), [(NetworkConfig(6, WIDTH, 2), "depth"), (NetworkConfig(DEPTH, 32, 2), "width")])
def test_a_stack_that_does_not_fit_is_refused(export, config, field):
    stack, _ = make_network(config)
    before = copy.deepcopy(stack.state_dict())
    with pytest.raises(UserError, match=f"policy.json: {field} is"):
        rl_skip.load(export, stack)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


def test_a_bit_that_changed_is_refused_wherever_it_is(export):
    files, draw = sorted(export.iterdir()), random.Random(0)
    sizes = [file.stat().st_size for file in files]
    for _ in range(200):
        file = draw.choices(files, sizes)[0] if draw.random() < 0.5 else draw.choice(files)
        whole, bit = file.read_bytes(), draw.randrange(8 * file.stat().st_size)
        file.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        with pytest.raises(UserError) as raised:
            rl_skip.load(export)
        assert str(export) in one_line(raised)
        file.write_bytes(whole)
    assert rl_skip.load(export).price == PRICE
    copy_export(export, export.parent / "copy")
    assert {file.name: file.read_bytes() for file in (export.parent / "copy").iterdir()} == {file.name: file.read_bytes() for file in files}


def test_an_export_without_digests_is_refused_with_what_makes_them(export):
    (export / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS, as those of earlier versions") as raised:
        rl_skip.load(export)
    assert one_line(raised)
    seal(export)
    assert rl_skip.load(export).price == PRICE


def test_layer_costs_that_differ_are_refused(tmp_path, export):
    edit(export, lambda described: described.update(layer_costs=[0.4, 0.2, 0.2, 0.2]))
    with pytest.raises(UserError, match=r"policy.json: layer_costs\[0\] is 0.40000, the network's is 0.25000"):
        rl_skip.load(export)
    with pytest.raises(UserError, match="layer_costs"):
        rl_skip.load(export, make_case("blocks")[0])


def test_depth_and_width_must_agree_with_the_weights(export):
    def widen(described):
        described["width"] = described["network"]["width"] = 32
        for part in described["observation"]["features"][:1]:
            part["size"] = 32

    edit(export, widen)
    with pytest.raises(UserError, match=r"policy.safetensors: the weight \S+ has shape"):
        rl_skip.load_policy(export)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors", "model.safetensors"])
def test_missing_and_damaged_files_are_named(export, name):
    content = (export / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x80\x05\x95" + b"x" * 50):
        (export / name).write_bytes(damaged)
        with pytest.raises(UserError) as raised:
            rl_skip.load(export)
        assert name in one_line(raised)
    (export / name).unlink()
    with pytest.raises(UserError) as raised:
        rl_skip.load(export)
    assert name in one_line(raised)


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"format_version": 1' + "0" * 5000 + "}", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_refused(export, text):
    (export / "policy.json").write_text(text)
    with pytest.raises(UserError, match="policy.json") as raised:
        rl_skip.load_policy(export)
    one_line(raised)


@pytest.mark.parametrize("file", ["policy.safetensors", "model.safetensors"])
def test_weights_that_do_not_fit_are_named(export, file):
    weights = load_file(export / file)
    first = next(iter(weights))
    for changed in (
        {**weights, first: torch.zeros(3, 3, 3, 3, 3)},
        {name: weight for name, weight in weights.items() if name != first},
        {**weights, "surplus": torch.zeros(1)},
    ):
        save_file(changed, export / file)
        with pytest.raises(UserError) as raised:
            rl_skip.load(export)
        message = one_line(raised)
        assert file in message and (first in message or "surplus" in message)


def test_a_description_of_a_giant_does_not_fill_the_memory(export):
    edit(export, lambda described: (described.update(hidden=2**16), described["network"].update(classes=10**12)))
    with pytest.raises(UserError, match="has shape"):
        rl_skip.load_policy(export)
    edit(export, lambda described: described.update(hidden=128))
    with pytest.raises(UserError, match="has shape"):
        rl_skip.load(export)


def test_a_folder_that_is_not_there(tmp_path):
    for load in (rl_skip.load, rl_skip.load_policy):
        with pytest.raises(UserError, match="there is no folder"):
            load(tmp_path / "nowhere")


def test_a_copy_is_the_same_and_a_damaged_export_is_not_copied(tmp_path, export):
    copy_export(export, tmp_path / "copy")
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()} == {file.name: file.read_bytes() for file in export.iterdir()}
    (export / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="model.safetensors"):
        copy_export(export, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_policy_for_another_stack_is_not_saved(tmp_path):
    stack, network, policy, _ = make_case("blocks")
    wrong = JumpPolicy(replace(policy.rules, layout=ObservationLayout(WIDTH, DEPTH + 1)))
    with pytest.raises(ValueError, match="does not fit"):
        rl_skip.save(tmp_path / "a", wrong, stack=stack, network=network, price=PRICE)
