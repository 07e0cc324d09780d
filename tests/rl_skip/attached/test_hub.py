"""from_pretrained and push_to_hub: folders, and the hub as its cache and its interface are, without a network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rl_skip
from rl_skip import Handle, SkipModel, UserError
from rl_skip.attached.pretrained import load_model
from rl_skip.core.seal import seal
from tests.rl_skip.pretrained_folders import save_bert

transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")
TEXTS = ["the film is great", "a dull plot with some music"]


def save_run(folder: Path, *, head: str = "standard", seed: int = 0) -> Path:
    """What a run leaves of its model and policy: `model` and `policy`, with readouts after each layer."""
    backbone = save_bert(folder / "backbone", initializer_range=0.2)
    torch.manual_seed(seed)
    stack: Any = load_model(str(backbone), ("bad", "good"), head=head, processor=transformers.AutoTokenizer.from_pretrained(backbone))  # type: ignore[arg-type]
    example = dict(stack.processor(TEXTS, padding=True, return_tensors="pt"))
    readouts = stack.add_readouts(example)
    features = rl_skip.core.features.default_features(False, True)
    layout = rl_skip.ObservationLayout(stack.width, stack.depth, features=features, readout_flops=readouts.flops)
    policy = rl_skip.JumpPolicy(rl_skip.JumpRules.reaching(layout, allow_exit=True, jumps=False)).eval()
    stack.write_model(folder / "model")
    rl_skip.save(folder / "policy", policy, stack=stack, weights=False, price=0.1, price_table=[(0.1, 0.5, 0.9), (0.2, 0.4, 0.8)])
    shutil.rmtree(backbone)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub cannot be reached, and its cache is here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache: Path, name: str, branch: str, commit: str, folder: Path) -> None:
    """Puts a folder into the cache, as a branch of a repository."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / branch).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the hub was asked for; the files that it got are in tmp_path / "repository"."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: Any = None) -> None:
            asked.append(("token", {"token": token}))

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            asked.append(("create_repo", {"repo_id": repo_id, **options}))
            return SimpleNamespace(repo_id=repo_id)

        def create_branch(self, repo_id: str, **options: Any) -> None:
            asked.append(("create_branch", {"repo_id": repo_id, **options}))

        def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
            asked.append(("upload_folder", options))
            shutil.copytree(folder_path, tmp_path / "repository")
            return "https://huggingface.co/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def logits_of(loaded: Handle | SkipModel) -> torch.Tensor:
    inputs = loaded.processor(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return loaded(inputs) if isinstance(loaded, SkipModel) else loaded.model(**inputs).logits


def expected(run: Path) -> torch.Tensor:
    return logits_of(from_stack(run))


def from_stack(run: Path) -> SkipModel:
    model = rl_skip.load(run / "policy", run / "model")
    model.stack.processor = transformers.AutoTokenizer.from_pretrained(run / "model")  # type: ignore[assignment]
    return model


def test_a_run_an_export_and_a_policy_beside_its_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "policy", tmp_path / "export")
    shutil.copytree(run / "model", tmp_path / "export" / "model")
    for folder in (run, run / "policy", str(tmp_path / "export")):
        handle = rl_skip.from_pretrained(folder)
        assert isinstance(handle, Handle) and not handle.model.training and handle.price == pytest.approx(0.1)
        torch.testing.assert_close(logits_of(handle), expected(run))
    assert rl_skip.from_pretrained(run, budget=0.4).price == pytest.approx(0.2)
    assert rl_skip.from_pretrained(run, price=0.3).price == pytest.approx(0.3)


def test_a_head_beside_a_backbone(tmp_path: Path) -> None:
    run = save_run(tmp_path, head="mean")
    loaded = rl_skip.from_pretrained(run)
    assert isinstance(loaded, SkipModel)
    torch.testing.assert_close(logits_of(loaded), expected(run))


def test_a_network_of_ours(tmp_path: Path) -> None:
    config = rl_skip.NetworkConfig(3, 16, heads=2)
    embedding = rl_skip.PatchEmbedding(8, 8, 1, 4)
    stack = config.build(embedding, embedding.tokens, 2)
    policy = rl_skip.JumpPolicy(rl_skip.JumpRules.reaching(rl_skip.ObservationLayout(16, 3)))
    network = rl_skip.nets.network.network_to_json(config, embedding, embedding.tokens, 2)
    rl_skip.save(tmp_path / "run" / "policy", policy, stack=stack, price=0.1, network=network)
    rows = torch.randn(3, 1, 8, 8)
    for folder in (tmp_path / "run", tmp_path / "run" / "policy"):
        loaded = rl_skip.from_pretrained(folder)
        assert isinstance(loaded, SkipModel) and loaded.processor is None
        with torch.no_grad():
            torch.testing.assert_close(loaded(rows), rl_skip.load(tmp_path / "run" / "policy")(rows))


def test_what_was_pushed_is_loaded_at_the_revision_that_is_named(
    run: Path, tmp_path: Path, cache: Path, pushed: list[tuple[str, dict[str, Any]]]
) -> None:
    handle = rl_skip.from_pretrained(run)
    assert isinstance(handle, Handle)
    before = handle.model.config.to_dict()
    address = handle.push_to_hub("me/films", private=True, token="secret", revision="v1", commit_message="First", create_pr=True)
    assert address == "https://huggingface.co/commit"
    assert pushed == [
        ("token", {"token": "secret"}),
        ("create_repo", {"repo_id": "me/films", "private": True, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/films", "branch": "v1", "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/films", "commit_message": "First", "commit_description": None, "revision": "v1", "create_pr": True}),
    ]
    assert handle.model.config.to_dict() == before, "pushing leaves the model as it was"
    repository = tmp_path / "repository"
    assert {file.suffix for file in repository.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".md", ".txt", ""}, "no pickle"
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: rl-skip\n") and 'rl_skip.from_pretrained("me/films")' in card

    put(cache, "me/films", "v1", "1" * 40, repository)
    put(cache, "me/films", "main", "2" * 40, save_run(tmp_path / "other", seed=1))
    torch.testing.assert_close(logits_of(rl_skip.from_pretrained("me/films", revision="v1")), expected(run))
    torch.testing.assert_close(logits_of(rl_skip.from_pretrained("me/films", revision="1" * 40)), expected(run))
    torch.testing.assert_close(logits_of(rl_skip.from_pretrained("me/films")), expected(tmp_path / "other"))
    assert not torch.allclose(expected(run), expected(tmp_path / "other"))
    alone = transformers.pipeline("text-classification", str(repository))(TEXTS)
    with torch.no_grad(), handle.disabled():
        assert [answer["label"] for answer in alone] == [("bad", "good")[i] for i in logits_of(handle).argmax(dim=1)]


def test_what_learns_is_pushed_as_a_model_and_its_policy(run: Path, tmp_path: Path, pushed: list[tuple[str, dict[str, Any]]]) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model")
    handle = rl_skip.attach(model, rl_skip.SkipConfig(price=0.1))
    handle.processor = transformers.AutoTokenizer.from_pretrained(run / "model")
    handle.push_to_hub("me/films")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "repository", output_loading_info=True)[1]
    assert not any(again.values()), "the file holds the model's weights and no others"
    loaded = rl_skip.from_pretrained(tmp_path / "repository")
    model.eval()
    assert isinstance(loaded, Handle)
    torch.testing.assert_close(logits_of(loaded), logits_of(handle))
    assert loaded.last_routes.equal(handle.last_routes)


def test_a_policy_alone_names_its_model_on_the_hub(tmp_path: Path, cache: Path, pushed: list[tuple[str, dict[str, Any]]]) -> None:
    put(cache, "someone/tiny-bert", "main", "3" * 40, save_bert(tmp_path / "base", head=True))
    model = transformers.AutoModelForSequenceClassification.from_pretrained("someone/tiny-bert")
    handle = rl_skip.attach(model, rl_skip.JumpRules.reaching(rl_skip.ObservationLayout(32, 4)))
    handle.push_to_hub("me/policy", include_model=False)
    files = sorted(file.name for file in (tmp_path / "repository").iterdir())
    assert files == ["README.md", "SHA256SUMS", "policy.json", "policy.safetensors"]
    put(cache, "me/policy", "main", "5" * 40, tmp_path / "repository")
    loaded = rl_skip.from_pretrained("me/policy")
    handle.processor = loaded.processor
    torch.testing.assert_close(logits_of(loaded), logits_of(handle.model.eval() and handle))


def test_what_cannot_be_loaded_is_said_in_one_line(run: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(run / "policy", tmp_path / "alone" / "policy")
    for name, options, said in (
        ("nowhere", {}, "there is no folder nowhere; name a run, an exported policy, or owner/name on the Hugging Face hub"),
        (tmp_path / "nowhere", {}, "there is no folder "),
        ("me/nothing", {}, "there is no folder me/nothing, and from the Hugging Face hub it cannot be had"),
        ("me/nothing", {"revision": "v7"}, "from the Hugging Face hub it, revision v7, cannot be had"),
        (run, {"revision": "v1"}, "is a folder, which has no revision v1"),
        (tmp_path / "empty", {}, "holds no policy, no policy.json and no policy/policy.json"),
        (tmp_path / "alone", {}, "has no model in or beside it, and names none; put the run's folder model beside it"),
        (run, {"price": 0.1, "budget": 0.5}, "a price and a budget exclude each other"),
    ):
        with pytest.raises(UserError) as refused:
            rl_skip.from_pretrained(name, **options)  # type: ignore[arg-type]
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_code_and_pickles_on_the_hub_are_not_touched(run: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(run, tmp_path / "evil")
    (tmp_path / "evil" / "model" / "modeling.py").write_text("raise SystemExit('run')")
    config = json.loads((tmp_path / "evil" / "model" / "config.json").read_text())
    config["auto_map"] = {name: "modeling.Evil" for name in ("AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer")}
    (tmp_path / "evil" / "model" / "config.json").write_text(json.dumps(config))
    seal(tmp_path / "evil" / "model", [file.name for file in (tmp_path / "evil" / "model").iterdir() if file.suffix in (".json", ".safetensors")])
    put(cache, "me/evil", "main", "7" * 40, tmp_path / "evil")
    torch.testing.assert_close(logits_of(rl_skip.from_pretrained("me/evil")), expected(run))
    (tmp_path / "evil" / "model" / "model.safetensors").rename(tmp_path / "evil" / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no model in or beside it"):
        rl_skip.from_pretrained(tmp_path / "evil")


def test_a_hub_that_refuses_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden:\nno rights")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    handle = rl_skip.from_pretrained(run)
    assert isinstance(handle, Handle)
    with pytest.raises(UserError, match=r"me/films on the Hugging Face hub cannot be written \(OSError: 403 Forbidden: no rights\); log in"):
        handle.push_to_hub("me/films")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_bit_that_changed_in_a_trained_model_is_refused(name: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "model" / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    for load in (lambda: rl_skip.from_pretrained(tmp_path / "run"), lambda: rl_skip.load(tmp_path / "run" / "policy", file.parent)):
        with pytest.raises(UserError) as refused:
            load()
        assert str(file.parent) in str(refused.value) and "\n" not in str(refused.value)
    file.write_bytes((run / "model" / name).read_bytes())
    (file.parent / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="model has no SHA256SUMS"):
        rl_skip.from_pretrained(tmp_path / "run")
