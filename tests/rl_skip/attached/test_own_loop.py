"""A policy that learns in a person's own loop: what the loss is, what the model has got, and what evaluation and calibration do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rl_skip
from rl_skip.attached.learning import LearningHandle
from rl_skip.attached.pretrained import load_model
from rl_skip.core.errors import UserError
from rl_skip.core.exits import exit_pass
from rl_skip.core.readouts import POOLING_RANK
from tests.rl_skip.attached.plain_network import Mlp
from tests.rl_skip.huggingface_models import DEPTH, batch, build, pruned

transformers = pytest.importorskip("transformers")
LABELS = torch.tensor([0, 1, 1, 0])
PATHS = {"bert": "bert.encoder.layer", "vit": "vit.layers", "wav2vec2": "wav2vec2.encoder.layers"}
PRICE = 0.3


def attached(family: str = "bert", **options: Any) -> tuple[nn.Module, LearningHandle, dict[str, Tensor]]:
    """A model without dropout in training mode, its handle, and a batch."""
    model = build(family)
    inputs = batch(model)
    _without_chance(model)
    handle = rl_skip.attach(model, rl_skip.SkipConfig(**({"price": PRICE} | options)), example=inputs)
    assert isinstance(handle, LearningHandle)
    return model.train(), handle, inputs


@pytest.mark.parametrize("family", PATHS)
def test_the_supervised_part_is_the_loss_of_networks_that_end_after_each_layer(family: str) -> None:
    """Copies of the head answer as the model with its later layers deleted; they learn from the labels and from full depth."""
    model, handle, inputs = attached(family, fresh_head=False)
    cut = [pruned(_bare(family), PATHS[family], [i <= k for i in range(DEPTH)]) for k in range(DEPTH)]
    answers = [one.train()(**inputs).logits for one in cut]
    teacher = answers[-1].detach().softmax(dim=1)
    expected = cross_entropy(answers[-1], LABELS)
    for answer in answers[:-1]:
        expected = expected + 0.5 * (cross_entropy(answer, LABELS) - (teacher * answer.log_softmax(dim=1)).sum(dim=1).mean())
    expected.backward()

    loss = handle.loss(model(**inputs), LABELS)
    loss.backward()

    metrics = handle.metrics()
    assert metrics["train/supervised_loss"] == pytest.approx(expected.item(), rel=1e-4)
    layers = [dict(one.get_submodule(PATHS[family]).named_parameters()) for one in cut]
    for name, parameter in model.get_submodule(PATHS[family]).named_parameters():
        torch.testing.assert_close(parameter.grad, sum(part[name].grad for part in layers if name in part), rtol=1e-3, atol=1e-5)
    for k, readout in enumerate(handle.part.readouts.each):  # type: ignore[union-attr]
        for name, parameter in readout.by_name()["classifier"].named_parameters():
            torch.testing.assert_close(parameter.grad, dict(cut[k].classifier.named_parameters())[name].grad, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in handle.policy.fc_out.parameters())  # type: ignore[union-attr]


def _without_chance(model: nn.Module) -> None:
    """Takes out what a model draws at random while it trains, but for LayerDrop."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]
    model.config.apply_spec_augment = False  # type: ignore[union-attr]


def _bare(family: str) -> nn.Module:
    bare = build(family)
    _without_chance(bare)
    if family == "wav2vec2":
        bare.config.layerdrop = 0.0
    return bare


def test_the_policys_part_is_the_expected_reward_of_leaving_after_each_layer() -> None:
    model, handle, inputs = attached(score="probability")
    policy = handle.policy
    assert policy is not None
    stack = rl_skip.HuggingFaceStack(_bare("bert"))
    stack.add_readouts(inputs)
    exits = exit_pass(stack.train(), policy, inputs, torch.full((4,), PRICE))
    handle.loss(model(**inputs), LABELS)
    rewards = []
    for b in range(4):
        staying, reward = 1.0, 0.0
        for i in range(DEPTH):
            leaves = 1.0
            if i < DEPTH - 1:
                chances = policy(exits.observations[b, i : i + 1]).detach().softmax(dim=1)[0]
                leaves = float(chances[1:].sum())
            score = float(exits.answers[i, b].detach().softmax(dim=0)[LABELS[b]])
            reward += staying * leaves * (score - PRICE * float(exits.compute[b, i]))
            staying *= 1 - leaves
        rewards.append(reward)
    assert handle.metrics()["rollout/ep_rew_mean"] == pytest.approx(sum(rewards) / 4, rel=1e-4)


@pytest.mark.parametrize("head", ["fresh", "fresh pooler", "trained", "trained, with adapters", "resized"])
def test_readouts_begin_as_those_of_a_run_from_the_same_file(head: str, tmp_path: Any) -> None:
    """Adapters that know the mean over the tokens, since BERT's head reads the first token alone, trained or not."""
    kind = {"fresh": "BertModel", "fresh pooler": "BertForMaskedLM"}.get(head, "BertForSequenceClassification")
    config, inputs = build("bert").config, batch(build("bert"))
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    run = load_model(str(tmp_path), ("no", "yes"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    if head == "trained, with adapters":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    if head == "resized":
        model.resize_token_embeddings(config.vocab_size + 3)
    handle = rl_skip.attach(model, rl_skip.SkipConfig())
    readouts, theirs = handle.stack.readouts, run.add_readouts(inputs)
    assert readouts is not None and readouts.plan == theirs.plan == {"rank": POOLING_RANK, "pools": True, "groups": 1}
    assert handle.part.readouts.state_dict().keys() == theirs.state_dict().keys()  # type: ignore[attr-defined, operator, union-attr]
    if "adapters" in head or head == "resized":
        return
    names = {id(weight): name for name, weight in run.model.named_parameters()}
    expected = {names[id(weight)] for module in run.head_modules() for weight in module.parameters()}
    (faster,) = [group["params"] for group in handle.parameter_groups(1e-3) if group["lr"] == 1e-2]  # type: ignore[attr-defined]
    assert {name for name, weight in model.named_parameters() if any(weight is one for one in faster) and "rl_skip" not in name} == expected


@pytest.mark.parametrize("fresh", [True, False])
def test_a_person_says_whether_the_head_has_yet_to_be_learned(fresh: bool) -> None:
    _, handle, inputs = attached(fresh_head=fresh)
    assert handle.stack.readouts is not None and ("pools" in handle.stack.readouts.plan) == fresh
    x = torch.randn(4, 3)
    plain = rl_skip.attach(Mlp(), rl_skip.SkipConfig(fresh_head=fresh), layers="blocks", example=x)  # no tokens, so no mean over them
    assert plain.stack.readouts is not None and "modules" in plain.stack.readouts.plan


def test_rows_that_are_padding_count_nowhere() -> None:
    gradients = []
    for padded in (True, False):
        model, handle, inputs = attached()
        labels = torch.tensor([0, -100, 1, -100]) if padded else torch.tensor([0, 1])
        inputs = inputs if padded else {name: tensor[[0, 2]] for name, tensor in inputs.items()}
        handle.loss(model(**inputs), labels).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)


def test_labels_among_the_arguments_give_the_models_own_loss_at_full_depth() -> None:
    model, _, inputs = attached()
    out = model(**inputs, labels=LABELS)
    torch.testing.assert_close(out.loss, _bare("bert").train()(**inputs, labels=LABELS).loss)


def test_a_given_teacher_takes_the_place_of_full_depth() -> None:
    model, handle, inputs = attached(distillation_weight=2.0)
    teacher = torch.randn(4, 2)
    answers = [pruned(_bare("bert"), PATHS["bert"], [i <= k for i in range(DEPTH)])(**inputs).logits for k in range(DEPTH)]
    lessons = [
        cross_entropy(answer, LABELS) - 2 * (teacher.softmax(dim=1) * answer.log_softmax(dim=1)).sum(dim=1).mean() for answer in answers
    ]
    handle.loss(model(**inputs), LABELS, teacher_logits=teacher)
    assert handle.metrics()["train/supervised_loss"] == pytest.approx(float(lessons[-1] + 0.5 * sum(lessons[:-1])), rel=1e-4)


def test_the_model_has_policy_and_readouts_while_they_are_attached_and_no_trace_afterwards() -> None:
    model = build("wav2vec2").train()
    model.config.layerdrop = 0.3
    names, inputs = list(model.state_dict()), batch(model)
    handle = rl_skip.attach(model, rl_skip.SkipConfig(), example=inputs)
    mine = {id(parameter) for parameter in (*handle.policy.parameters(), *handle.stack.readouts.parameters())}  # type: ignore[union-attr]
    assert mine <= {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(model.state_dict()) > len(names) and model.config.layerdrop == 0
    handle.loss(model(**inputs), LABELS).backward()
    handle.detach()
    assert list(model.state_dict()) == names and model.config.layerdrop == 0.3
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_checkpoint_of_the_model_takes_policy_and_steering_along() -> None:
    model, handle, inputs = attached(price=None, budget=0.5)
    optimizer = torch.optim.AdamW(handle.parameter_groups(1e-3))
    for _ in range(5):
        optimizer.zero_grad()
        handle.loss(model(**inputs), LABELS).backward()
        optimizer.step()
    other, again, _ = attached(price=None, budget=0.5)
    assert again.price != handle.price
    other.load_state_dict(model.state_dict())
    assert again.price == pytest.approx(handle.price, rel=1e-6)
    with torch.no_grad():
        assert other.eval()(**inputs).logits.equal(model.eval()(**inputs).logits)
    assert again.last_routes.equal(handle.last_routes)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_a_decoder_with_classes_learns_and_routes(name: str) -> None:
    sizes = {"vocab_size": 60, "pad_token_id": 0, "num_labels": 3, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=48, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).train()
    inputs = batch(build("bert"))
    handle = rl_skip.attach(model, rl_skip.SkipConfig())
    handle.loss(model(**inputs), LABELS).backward()
    assert all(parameter.grad is not None for parameter in handle.part.parameters())
    handle.calibrate([{**inputs, "labels": LABELS}])
    with torch.no_grad():
        assert model.eval()(**inputs).logits.shape == (4, 3)
    assert handle.last_routes.shape == (4, 4)


def test_each_group_learns_at_its_own_rate() -> None:
    model, handle, _ = attached(head_rate=4.0, policy_learning_rate=0.007)
    groups = handle.parameter_groups(0.001, weight_decay=0.1)
    rate = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        fast = name.startswith(("classifier", "rl_skip.readouts"))  # the pooler was trained with the model
        assert rate[id(parameter)] == ((0.007, 0.0) if "deciding" in name else (0.004, 0.1) if fast else (0.001, 0.1)), name


def test_the_price_of_a_budget_falls_while_rows_spend_less() -> None:
    model, handle, inputs = attached(price=None, budget=1.0)
    before = handle.price
    for _ in range(10):
        handle.loss(model(**inputs), LABELS)
    assert handle.price < before and handle.metrics()["rollout/compute"] < 1


def test_evaluation_routes_rows_and_calibration_tells_what_it_will_do() -> None:
    """The table says of each price what the attached model does at it, called as its user calls it."""
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = Mlp().train()
    handle = rl_skip.attach(model, rl_skip.SkipConfig(policy_hidden=8), layers="blocks", example=x)
    optimizer = torch.optim.Adam(handle.parameter_groups(3e-3))
    for _ in range(30):
        optimizer.zero_grad()
        handle.loss(model(x), labels).backward()
        optimizer.step()
    table = handle.calibrate([(x[:40], labels[:40]), (x[40:], labels[40:])], learn_from=[(x, labels)])
    assert model.training and len(table.points) > 0
    model.eval()
    for point in table.points:
        handle.price = point.price
        right = (model(x).argmax(dim=1) == labels).float()
        assert handle.last_compute.mean().item() == pytest.approx(point.compute, rel=1e-5)
        assert right.mean().item() == pytest.approx(point.score)
    handle.budget = table.points[-1].compute
    assert handle.budget == pytest.approx(table.points[-1].compute)


def test_a_policy_for_a_budget_is_fitted_to_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = Mlp().train()
    handle = rl_skip.attach(model, rl_skip.SkipConfig(budget=0.7, policy_hidden=8, policy_epochs=20), layers="blocks", example=x)
    optimizer = torch.optim.Adam(handle.parameter_groups(3e-3))
    for _ in range(60):
        optimizer.zero_grad()
        handle.loss(model(x), labels).backward()
        optimizer.step()
    handle.calibrate([(x, labels)], learn_from=[(x, labels)])
    model.eval()(x)
    assert handle.last_compute.mean().item() == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize("how", ["autocast", "checkpointing", "compiled"])
def test_the_gradient_is_the_same_in_mixed_precision_with_checkpointing_and_compiled(how: str) -> None:
    gradients = []
    for plain in (True, False):
        model, handle, inputs = attached()
        if how == "checkpointing" and not plain:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        called = torch.compile(model, backend="eager") if how == "compiled" and not plain else model
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast" and not plain):
            loss = handle.loss(called(**inputs), LABELS)
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        mine = gradients[1][name]
        assert mine is not None and expected is not None, name
        assert (mine - expected).norm() <= (0.1 if how == "autocast" else 1e-4) * expected.norm() + 1e-3, name


def test_a_model_in_half_precision_keeps_its_policy_in_single() -> None:
    model, handle, inputs = attached(price=None, budget=0.5)
    model.to(torch.bfloat16)
    assert handle.policy.fc_in.weight.dtype == handle.deciding.steering.dtype == torch.float32  # type: ignore[union-attr]
    handle.loss(model(**inputs), LABELS).backward()
    assert all(parameter.grad is not None for parameter in handle.part.parameters())
    with torch.no_grad():
        assert model.eval()(**inputs).logits.dtype == torch.bfloat16


def test_adapters_of_peft_learn_with_the_policy_and_the_merged_model_takes_it(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = build("bert"), batch(build("bert"))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    handle = rl_skip.attach(wrapped, rl_skip.SkipConfig(), example=inputs)
    optimizer = torch.optim.AdamW(handle.parameter_groups(1e-2))
    for _ in range(2):
        optimizer.zero_grad()
        handle.loss(wrapped.train()(**inputs), LABELS).backward()
        assert all(parameter.grad is not None for parameter in wrapped.parameters() if parameter.requires_grad)
        optimizer.step()
    with torch.no_grad():
        expected = wrapped.eval()(**inputs).logits
    handle.save_pretrained(tmp_path / "policy")
    handle.detach()
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, type(merged).from_pretrained(tmp_path / "merged")):
        again = rl_skip.attach(model, tmp_path / "policy")
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, expected)
        assert again.last_routes.equal(handle.last_routes)


@pytest.mark.parametrize("first", ["policy", "model"])
def test_a_policy_knows_the_model_that_learned_with_it_from_the_one_that_it_was_made_of(tmp_path: Any, first: str) -> None:
    """Whichever is written first, twice in one loop, wherever they lie, and saved again by another handle."""
    build("bert").save_pretrained(tmp_path / "base")
    kind = type(build("bert"))
    model, inputs = kind.from_pretrained(tmp_path / "base"), batch(build("bert"))
    _without_chance(model)
    handle = rl_skip.attach(model, rl_skip.SkipConfig(price=PRICE), example=inputs)
    optimizer, expected = torch.optim.AdamW(handle.parameter_groups(1e-2)), {}
    for pair in ("first", "second"):
        optimizer.zero_grad()
        handle.loss(model.train()(**inputs), LABELS).backward()
        optimizer.step()
        for part in ("policy", "model") if first == "policy" else ("model", "policy"):
            if part == "policy":
                handle.save_pretrained(tmp_path / pair / "policy")
            else:
                model.save_pretrained(tmp_path / pair / f"trained-{pair}", state_dict=handle.model_weights())
        with torch.no_grad():
            expected[pair] = model.eval()(**inputs).logits
    for pair, other in (("first", "second"), ("second", "first")):
        loaded = kind.from_pretrained(tmp_path / pair / f"trained-{pair}").eval()
        again = rl_skip.attach(loaded, tmp_path / pair / "policy")
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, expected[pair])
        again.save_pretrained(tmp_path / pair / "again" / "policy")
        again.detach()
        loaded.save_pretrained(tmp_path / pair / "again" / "model")
        assert rl_skip.from_pretrained(tmp_path / pair / "again").policy is not None
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            rl_skip.attach(kind.from_pretrained(tmp_path / pair / f"trained-{pair}", dtype=dtype), tmp_path / pair / "again" / "policy")
        for wrong in (tmp_path / "base", tmp_path / other / f"trained-{other}"):
            for policy in ("policy", "again/policy"):
                with pytest.raises(UserError, match=r"the policy learned with other weights than the given model's bert\.\S+; load the model that"):
                    rl_skip.attach(kind.from_pretrained(wrong), tmp_path / pair / policy)


def test_a_policy_that_learned_beside_a_frozen_model_takes_it_wherever_it_lies(tmp_path: Any) -> None:
    build("bert").save_pretrained(tmp_path / "base")
    kind = type(build("bert"))
    model, inputs = kind.from_pretrained(tmp_path / "base").requires_grad_(False), batch(build("bert"))
    handle = rl_skip.attach(model, rl_skip.SkipConfig(price=PRICE), example=inputs)
    handle.loss(model.train()(**inputs), LABELS).backward()
    handle.save_pretrained(tmp_path / "policy")
    handle.detach()
    model.save_pretrained(tmp_path / "elsewhere")
    for name in ("base", "elsewhere"):
        again = rl_skip.attach(kind.from_pretrained(tmp_path / name), tmp_path / "policy")
        assert again.policy is not None and handle.policy is not None
        assert again.policy.fc_in.weight.equal(handle.policy.fc_in.weight)
    changed = kind.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        changed.classifier.weight.mul_(2)
    with pytest.raises(UserError, match="the policy learned with other weights than the given model's classifier.weight"):
        rl_skip.attach(changed, tmp_path / "policy")


def test_a_model_that_was_trained_here_and_learns_on_is_known_by_its_new_weights(tmp_path: Any) -> None:
    """What it was before, and the policy of that time, do not go with it."""
    model, inputs = build("bert"), batch(build("bert"))
    model.config.rl_skip_weights = "0123456789abcdef"  # as a run writes it
    handle = rl_skip.attach(model, rl_skip.SkipConfig(price=PRICE), example=inputs)
    optimizer = torch.optim.AdamW(handle.parameter_groups(1e-2))
    handle.loss(model.train()(**inputs), LABELS).backward()
    optimizer.step()
    handle.save_pretrained(tmp_path / "pair" / "policy")
    handle.detach()
    model.save_pretrained(tmp_path / "pair" / "model")
    rl_skip.attach(type(model).from_pretrained(tmp_path / "pair" / "model"), tmp_path / "pair" / "policy")
    assert rl_skip.from_pretrained(tmp_path / "pair").policy is not None
    before = build("bert")
    before.config.rl_skip_weights = "0123456789abcdef"
    with pytest.raises(UserError, match="the policy learned with other weights"):
        rl_skip.attach(before, tmp_path / "pair" / "policy")


def test_a_copy_learns_on_by_itself() -> None:
    model, handle, inputs = attached()
    model(**inputs)
    other = copy.deepcopy(model)
    before = handle.policy.fc_in.weight.clone()  # type: ignore[union-attr]
    twin = other.bert.encoder.layer[0].forward.handle
    loss = twin.loss(other(**inputs), LABELS)
    torch.optim.SGD(other.parameters(), 1.0).zero_grad()
    loss.backward()
    torch.optim.SGD(other.parameters(), 1.0).step()
    assert handle.policy.fc_in.weight.equal(before) and not twin.policy.fc_in.weight.equal(before)  # type: ignore[union-attr]
