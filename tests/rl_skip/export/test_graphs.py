"""Routed networks as graphs: what onnxruntime makes of them beside PyTorch, row for row."""

import hashlib
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import UserDict
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import HuggingFaceStack, JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.dial import PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature, default_features
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import take_rows, trimmed
from rl_skip.export.graphs.carried import probes
from rl_skip.export.graphs.folder import About, numpy_inputs
from rl_skip.export.graphs.layer_graphs import Graphs
from rl_skip.export.graphs.one_row import write_one_row
from rl_skip.export.graphs.pack import write_pack
from rl_skip.export.graphs.routes import every_exit, write_routes
from rl_skip.export.policy_folder import SkipModel, read_description
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task
from tests.pages import TOP, blocks

WANTED = "pip install 'rl-skip[onnx]'"
np, onnxruntime, *_ = (pytest.importorskip(name, reason=WANTED) for name in ("numpy", "onnxruntime", "onnx", "onnxscript"))
run_pack = pytest.importorskip("rl_skip.export.graphs.run_pack")
Pack = run_pack.Pack

SERVER = Path(__file__).resolve().parents[3] / "examples" / "serving" / "serve.py"
LAYERS, WIDTH = 3, 16
FEW = slice(5, 12)
PRICES = (1e-4, 0.05, 5.0)
"""The first is below what the policies see."""
TABLE = [(1.0, 0.4, 0.5), (0.1, 0.6, 0.6), (0.0, 0.9, 0.7)]
BLOCKING = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "rl_skip", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"{name} is kept out")
sys.meta_path.insert(0, Refused())
"""


@dataclass(frozen=True)
class Exported:
    """A network with its policy, rows of its data, its pack, and its graph for one row."""

    model: SkipModel
    inputs: object
    about: About
    folder: Path
    one_row: Path

    def expected(self, rows, price):
        with torch.no_grad():
            return routed_forward(self.model.stack, self.model.policy, rows, price=price)


def ways(stack, policy, inputs):
    """The routes that rows take at the tests' prices."""
    with torch.no_grad():
        return {tuple(route) for price in PRICES for route in routed_forward(stack, policy, inputs, price=price).route.tolist()}


def spread(stack, policy, inputs):
    """The policy, with the first weights drawn that send a few rows at least three ways."""
    for seed in range(200):
        torch.manual_seed(seed)
        nn.init.normal_(policy.fc_in.weight, std=2.0)
        nn.init.normal_(policy.fc_out.weight, std=1.0)
        if len(ways(stack.eval(), policy.eval(), inputs)) > 2:
            return policy
    raise AssertionError("no policy sends the rows three ways")


def unlike(stack):
    """The stack, with readouts that answer differently at each depth."""
    torch.manual_seed(4)
    for parameter in stack.readouts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stack


def model_of(stack, inputs, *, jumps, features=None, scope="state"):
    flops, classes = (0.0, 0) if stack.readouts is None else (stack.readouts.flops, stack.readouts.classes)
    chosen = default_features(has_memory=False, has_readouts=bool(flops), classes=classes) if features is None else features
    layout = ObservationLayout(stack.width, stack.depth, features=chosen, readout_flops=flops)
    policy = spread(stack, JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=jumps, scope=scope)), trimmed(take_rows(inputs, FEW)))
    return SkipModel(stack.eval(), policy, price=0.05, table=PriceTable.monotone(TABLE)).eval()


def exported(tmp, model, inputs, classes):
    rl_skip.save(tmp / "policy", model.policy, stack=model.stack, weights=False, price=model.price, price_table=model.table)
    about, graphs = About(read_description(tmp / "policy"), classes), Graphs(model, inputs)
    write_pack(tmp / "pack", graphs, inputs, about)
    write_one_row(tmp / "one_row", graphs, inputs, about)
    return Exported(model, inputs, about, tmp / "pack", tmp / "one_row" / "one_row.onnx")


def digits_stack(readouts):
    task = load_task("digits", None)
    torch.manual_seed(0)
    stack = build_network(NetworkConfig(layers=LAYERS, width=WIDTH, heads=2), task.embedding, task.tokens, 10)
    inputs = task.load("validation").inputs[:40]
    if readouts:
        stack.add_readouts(inputs[:2])
        unlike(stack)
    return stack, inputs


def mixed_lengths(rows=40, longest=12):
    """Token numbers of rows of 3 to `longest` tokens, padded."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, longest + 1, (rows,), generator=generator)
    mask = torch.arange(longest) < lengths.unsqueeze(1)
    return {"input_ids": torch.randint(1, 50, (rows, longest), generator=generator) * mask, "attention_mask": mask.long()}


def bert_stack():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=20), add_pooling_layer=False)
    stack = HuggingFaceStack(model.eval(), head=nn.Linear(WIDTH, 2))
    inputs = mixed_lengths()
    stack.add_readouts(take_rows(inputs, slice(0, 2)))
    return unlike(stack), inputs


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Rows of different lengths, and a policy that looks at the answers and leaves."""
    stack, inputs = bert_stack()
    return exported(tmp_path_factory.mktemp("bert"), model_of(stack, inputs, jumps=False), inputs, ("a", "b"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A policy that looks at the answers, jumps and leaves: what it saw last was seen any number of layers ago."""
    stack, inputs = digits_stack(readouts=True)
    return exported(tmp_path_factory.mktemp("digits"), model_of(stack, inputs, jumps=True), inputs, map(str, range(10)))


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A policy that looks at the input alone, without readouts: rows that leave are answered by what comes after the layers."""
    stack, inputs = digits_stack(readouts=False)
    model = model_of(stack, inputs, jumps=True, features=default_features(has_memory=False), scope="input")
    return exported(tmp_path_factory.mktemp("blind"), model, inputs, map(str, range(10)))


def check_rows(answers, routes, compute, rollout):
    assert routes.tolist() == rollout.route.tolist()
    assert np.abs(answers - rollout.outputs.numpy()).max() < 1e-4
    assert np.abs(compute - rollout.compute.numpy()).max() < 1e-5


@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.parametrize("name", ["bert", "digits", "blind"])
def test_a_pack_takes_each_row_its_own_way_and_answers_as_pytorch_does(request, name, rows):
    made = request.getfixturevalue(name)
    pack, batch = Pack(made.folder), trimmed(take_rows(made.inputs, slice(5, 5 + rows)))
    for price in PRICES:
        check_rows(*pack(numpy_inputs(batch), price=price), made.expected(batch, price))


def test_a_row_alone_is_answered_by_the_graph_for_one_row(bert, monkeypatch):
    pack, ran = Pack(bert.folder), []
    run = pack.run
    monkeypatch.setattr(pack, "run", lambda name, state: ran.append(name) or run(name, state))
    pack(numpy_inputs(trimmed(take_rows(bert.inputs, slice(5, 6)))))
    assert ran == ["one_row.onnx"]
    pack(numpy_inputs(trimmed(take_rows(bert.inputs, slice(5, 7)))))
    assert ran[1:3] == ["begin.onnx", "layer_0.onnx"]


def test_every_weight_lies_in_a_pack_once(bert):
    """Were they in the graphs, those of the layers would lie there twice."""
    sizes = {file.name: file.stat().st_size for file in bert.folder.iterdir()}
    large = [tensor.nbytes for tensor in bert.model.stack.state_dict().values() if tensor.nbytes >= 1024]
    assert sum(large) <= sizes["weights.data"] + 4096 <= sum(large) + 4096 * (len(large) + 2)  # each begins at a page


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_pack_may_be_a_link_or_hold_links(bert, tmp_path, link):
    """As caches of downloads and backups keep files."""
    (tmp_path / "cache").mkdir()
    for file in bert.folder.iterdir():
        link(file, tmp_path / "cache" / file.name)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    for rows in (1, 4):
        batch = trimmed(take_rows(bert.inputs, slice(5, 5 + rows)))
        check_rows(*Pack(tmp_path / "link")(numpy_inputs(batch), price=PRICES[1]), bert.expected(batch, PRICES[1]))


def test_a_pack_of_another_format_is_refused(digits, tmp_path):
    folder = shutil.copytree(digits.folder, tmp_path / "pack")
    about = json.loads((folder / "pack.json").read_text())
    assert about["format_version"] == run_pack.FORMAT
    (folder / "pack.json").write_text(json.dumps(about | {"format_version": 1}))
    with pytest.raises(ValueError, match="is a pack of format 1, this runner reads 2; take the run_pack.py that lies in it"):
        Pack(folder)


@pytest.mark.parametrize("name", ["weights.data", "one_row.onnx", "layer_2.onnx"])
def test_a_file_that_has_no_digest_is_refused(bert, tmp_path, name):
    folder = shutil.copytree(bert.folder, tmp_path / "pack")
    about = json.loads((folder / "pack.json").read_text())
    del about["files"][name]
    (folder / "pack.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"names '{name}', which is no file in its folder"):
        Pack(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention_mask": np.ones((3, 6))}, "do not fit the network or one another, got shapes input_ids .4, 6., attention_mask .3, 6."),
        ({"attention_mask": np.ones((4, 7))}, "do not fit the network or one another, got shapes input_ids .4, 6., attention_mask .4, 7."),
        ({"attention_mask": np.ones(4)}, "do not fit the network or one another"),
        ({"attention_mask": None}, "the network takes input_ids, attention_mask, and attention_mask was not given"),
        ({"input_ids": np.ones((0, 6)), "attention_mask": np.ones((0, 6))}, "at least one row"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(bert, changes, complaint):
    inputs = {"input_ids": np.ones((4, 6)), "attention_mask": np.ones((4, 6))} | changes
    with pytest.raises(ValueError, match=complaint):
        Pack(bert.folder)({name: array for name, array in inputs.items() if array is not None})


class _Branching(nn.Module):
    """A layer with a graph within its graph."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, mask=None):
        hidden = self.layer(hidden, mask)
        return torch.cond(hidden.abs().mean() > 1e3, lambda x: x * 2, lambda x: x + 1.5, (hidden,))


def test_a_layer_may_hold_a_graph_within_its_graph(tmp_path):
    stack, inputs = digits_stack(readouts=True)
    stack.layers[1] = _Branching(stack.layers[1])
    made = exported(tmp_path, model_of(stack, inputs, jumps=False), inputs, map(str, range(10)))
    for rows in (1, 6):
        batch = inputs[FEW][:rows]
        check_rows(*Pack(made.folder)(batch.numpy(), price=PRICES[1]), made.expected(batch, PRICES[1]))


def test_what_a_runtime_refuses_is_said_in_one_line(tmp_path, monkeypatch):
    stack, inputs = digits_stack(readouts=True)
    model = model_of(stack, inputs, jumps=False)
    monkeypatch.setattr(run_pack.Pack, "__init__", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="the graphs were made, and cannot be run, so they are not written: division by zero"):
        exported(tmp_path, model, inputs, map(str, range(10)))
    assert not (tmp_path / "pack").exists()


def test_rows_of_one_batch_may_have_prices_of_their_own(digits):
    prices = [PRICES[n % 3] for n in range(12)]
    batch = take_rows(digits.inputs, slice(0, 12))
    rollout = digits.expected(batch, torch.tensor(prices))
    check_rows(*Pack(digits.folder)(batch.numpy(), price=prices), rollout)


def test_graphs_may_share_their_threads(digits, tmp_path):
    batch = take_rows(digits.inputs, slice(0, 12))
    np.savez(tmp_path / "rows.npz", inputs=batch.numpy())
    code = f"""
import numpy as np
import onnxruntime
from run_pack import Pack
rows = np.load({str(tmp_path / "rows.npz")!r})["inputs"]
onnxruntime.set_global_thread_pool_sizes(2, 1)  # of another part of the process
first, second = (Pack({str(digits.folder)!r}, threads=2, one_pool=True) for _ in range(2))
np.savez({str(tmp_path / "said.npz")!r}, *first(rows, price={PRICES[1]}), *second(rows, price={PRICES[1]}))
"""
    subprocess.run([sys.executable, "-c", code], cwd=digits.folder, check=True)  # of its own: a pool is the process's
    said = list(np.load(tmp_path / "said.npz").values())
    for start in (0, 3):
        check_rows(*said[start : start + 3], digits.expected(batch, PRICES[1]))


def test_a_budget_is_turned_into_the_price_that_the_dial_has_for_it(digits):
    pack, table = Pack(digits.folder), digits.model.table
    for budget in (0.4, 0.47, 0.6, 0.75, 0.9, 1.0):
        assert pack.price_for(budget) == pytest.approx(table.price_for(budget), rel=1e-6)
    with pytest.raises(ValueError, match=r"\[0.4000, 1\], got 0.3"):
        pack.price_for(0.3)
    batch = take_rows(digits.inputs, slice(0, 5))
    assert pack(batch.numpy(), budget=0.6)[1].tolist() == pack(batch.numpy(), price=table.price_for(0.6))[1].tolist()
    with pytest.raises(ValueError, match="exclude each other"):
        pack(batch.numpy(), budget=0.6, price=0.1)
    with pytest.raises(ValueError, match="a price is a finite number of at least 0, got -1"):
        pack(batch.numpy(), price=-1)
    with pytest.raises(ValueError, match="one number or one for each of 5 rows, got shape .4,."):
        pack(batch.numpy(), price=[0.1] * 4)


def test_the_runner_needs_neither_torch_nor_transformers_nor_rl_skip(bert, tmp_path):
    batch = trimmed(take_rows(bert.inputs, slice(0, 7)))
    np.savez(tmp_path / "rows.npz", **numpy_inputs(batch))
    code = f"""{BLOCKING}
import numpy as np
from run_pack import Pack
answers, routes, compute = Pack("{bert.folder}")(dict(np.load("{tmp_path / "rows.npz"}")))
np.savez("{tmp_path / "found.npz"}", answers=answers, routes=routes, compute=compute)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=bert.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    check_rows(found["answers"], found["routes"], found["compute"], bert.expected(batch, bert.model.price))


def test_the_lines_of_the_page(bert, tmp_path, monkeypatch):
    """Those of docs/export.md, beside a pack."""
    (block,) = [block for block in blocks(TOP / "docs" / "export.md") if block.language == "python"]
    shutil.copytree(bert.folder, tmp_path / "my-pack")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    batch = mixed_lengths(9)
    names = {"inputs": UserDict({name: tensor.numpy() for name, tensor in batch.items()})}  # as a tokenizer gives it, which is no dict
    exec(compile(block.code, str(block), "exec"), names)
    price = bert.model.table.price_for(0.5)
    check_rows(names["answers"], names["routes"], names["compute"], bert.expected(batch, price))


@pytest.mark.parametrize("name", ["layer_1.onnx", "weights.data", "run_pack.py"])
def test_a_file_that_was_changed_is_refused_by_name(digits, tmp_path, name):
    folder = shutil.copytree(digits.folder, tmp_path / "pack")
    with (folder / name).open("ab") as opened:
        opened.write(b"#")
    with pytest.raises(ValueError, match=f"{name} is not the file that was exported"):
        Pack(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "pipe", "gone"])
def test_no_name_in_a_pack_leads_out_of_it_or_to_what_never_ends(digits, tmp_path, name):
    folder = shutil.copytree(digits.folder, tmp_path / "pack")
    (tmp_path / "outside").write_text("mine")
    os.mkfifo(folder / "pipe")
    about = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(about | {"files": {name: hashlib.sha256(b"mine").hexdigest()}}))
    with pytest.raises(ValueError, match="which is no file in its folder"):
        Pack(folder)


def test_a_pack_says_what_it_is_and_names_nothing_of_the_machine(digits):
    about = json.loads((digits.folder / "pack.json").read_text())
    assert about["inputs"] == {"inputs": "float32"} and about["classes"] == list(map(str, range(10)))
    assert set(about["files"]) | {"pack.json"} == {file.name for file in digits.folder.iterdir()}
    assert [point["price"] for point in about["policy"]["price_table"]] == [1.0, 0.1, 0.0]
    for file in digits.folder.iterdir():
        assert b"/rl_skip/" not in file.read_bytes() and b"site-packages" not in file.read_bytes(), file.name


@pytest.mark.parametrize("name", ["bert", "digits", "blind"])
def test_one_graph_for_one_row_goes_the_same_ways(request, name):
    made = request.getfixturevalue(name)
    graph = onnxruntime.InferenceSession(made.one_row)
    for price in PRICES:
        for n in range(FEW.start, FEW.stop):
            row = trimmed(take_rows(made.inputs, slice(n, n + 1)))
            answers, route, compute = graph.run(None, {**numpy_inputs(row), "price": np.array([price], dtype=np.float32)})
            check_rows(answers, route, compute, made.expected(row, price))


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_route_that_all_rows_share_is_answered_by_the_readout_of_its_last_layer(tmp_path, bert, form):
    routes, stack = {"exit_1": every_exit(LAYERS)["exit_1"], "route": (0, 2)}, bert.model.stack
    write_routes(tmp_path / "routes", stack, bert.inputs, routes, form, bert.about)
    batch = trimmed(take_rows(bert.inputs, slice(0, 7)))
    for name, layers in routes.items():
        with torch.no_grad():
            carry = stack.begin(batch)
            for i in layers:
                stack.run(i, carry, None)
            expected = stack.finish(carry) if layers[-1] == LAYERS - 1 else stack.read(stack.readouts.each[layers[-1]], carry, None)
        if form == "onnx":
            answers = onnxruntime.InferenceSession(tmp_path / "routes" / f"{name}.onnx").run(None, numpy_inputs(batch))[0]
        else:
            answers = torch.export.load(tmp_path / "routes" / f"{name}.pt2").module()(batch).detach().numpy()
        assert np.abs(answers - expected.numpy()).max() < 1e-4, name
    written = {file.name for file in (tmp_path / "routes").iterdir()} - {"exit_1.pt2", "route.pt2", "graphs.json"}
    assert written == ({"exit_1.onnx", "route.onnx", "weights.data"} if form == "onnx" else set())


def test_a_single_graph_stands_alone(tmp_path, bert):
    write_routes(tmp_path / "route", bert.model.stack, bert.inputs, {"route": (0, 2)}, "onnx", bert.about)
    for file in (tmp_path / "route" / "route.onnx", bert.one_row):
        assert {other.name for other in file.parent.iterdir()} == {file.name, "graphs.json"}
        onnxruntime.InferenceSession(file.read_bytes())  # of bytes that lie nowhere


def test_working_memories_and_features_of_ones_own_are_refused():
    task = load_task("digits", None)
    inputs = task.load("validation").inputs[:9]
    gated = build_network(NetworkConfig(layers=LAYERS, width=WIDTH, heads=2, stack="skip-layer"), task.embedding, task.tokens, 10)
    for stack, features, complaint in (
        (gated, default_features(has_memory=True), "working memory"),
        (digits_stack(readouts=False)[0], (_Secret(),), "'secret' is your own"),
    ):
        policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, LAYERS, features=features)))
        with pytest.raises(UserError, match=complaint):
            Graphs(SkipModel(stack.eval(), policy, price=0.1).eval(), inputs)


class _Secret(Feature):
    name = "secret"

    def read(self, view):
        return torch.full((len(view.rows), 1), math.pi)


def test_the_server_answers_texts_each_at_its_own_budget(bert, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = shutil.copytree(bert.folder, tmp_path / "pack")
    words = {"[UNK]": 0, **{f"word{n}": n for n in range(1, 50)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    server = runpy.run_path(str(SERVER))["serve"](folder, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(**asked):
        request = urllib.request.Request(f"http://localhost:{server.server_port}", json.dumps(asked).encode())
        with urllib.request.urlopen(request) as opened:
            return json.load(opened)

    try:
        for budget in (0.4, 0.9):
            said = ask(text="word3 word7 word30 word11", budget=budget)
            row = {"input_ids": torch.tensor([[3, 7, 30, 11]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
            rollout = bert.expected(row, bert.model.table.price_for(budget))
            assert said["layers"] == rollout.route[0].nonzero().squeeze(1).tolist()
            assert said["class"] == "ab"[int(rollout.outputs.argmax())]
            assert said["probability"] == pytest.approx(float(rollout.outputs.softmax(dim=1).max()), abs=1e-4)
            assert said["compute"] == pytest.approx(float(rollout.compute), abs=1e-5)
        for wrong in ({"text": "word3", "budget": 0.01}, {"txt": "word3"}, {"text": "word3", "budget": "0.5"}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask(**wrong)
        with futures.ThreadPoolExecutor(40) as clients:  # one of them longer than the network has positions for
            texts = ["word3 " * (30 if n == 7 else 4) for n in range(80)]
            said = [clients.submit(ask, text=text, budget=0.9) for text in texts]
        assert [n for n, one in enumerate(said) if one.exception() is not None] == [7] and said[7].exception().code == 500
    finally:
        server.shutdown()


def test_probes_differ_in_rows_and_tokens_and_both_have_padding():
    first, second = probes(mixed_lengths())
    assert (first["input_ids"].shape[0], second["input_ids"].shape[0]) == (3, 2)
    assert first["input_ids"].shape[1] == second["input_ids"].shape[1] + 1
    assert not first["attention_mask"].all() and not second["attention_mask"].all()
