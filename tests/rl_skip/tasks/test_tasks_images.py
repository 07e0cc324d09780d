"""The task images: IDX files, npz files and folders that the tests make, and Fashion-MNIST where it is at hand."""

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_skip.core.errors import UserError
from rl_skip.core.task import Task
from rl_skip.nets.blocks import PatchEmbedding
from rl_skip.tasks import load_task
from rl_skip.tasks.images import images, patch_and_padding
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.reading import digests

np = pytest.importorskip("numpy")
SPLITS = ("train", "validation", "test")


def random_images(count: int, height: int = 8, width: int = 8, seed: int = 0, dtype: str = "uint8") -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width)).astype(dtype)


def labels_of(count: int, classes: int = 3) -> Any:
    return (np.arange(count) % classes).astype("uint8")


def idx_images(pixels: Any) -> bytes:
    return struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes()


def idx_labels(labels: Any) -> bytes:
    return struct.pack(">II", 2049, len(labels)) + labels.tobytes()


def idx_files(train: int = 36, test: int = 9) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx_images(random_images(train)),
        "train-labels-idx1-ubyte": idx_labels(labels_of(train)),
        "t10k-images-idx3-ubyte": idx_images(random_images(test, seed=1)),
        "t10k-labels-idx1-ubyte": idx_labels(labels_of(test)),
    }


def write(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def all_rows(task: Task, splits: tuple[str, ...] = SPLITS) -> tuple[Any, Any]:
    """Every image (N, C, H, W) and every class name of these splits."""
    examples = [task.load(split) for split in splits]  # type: ignore[arg-type]
    names = [task.classes[label] for part in examples for label in part.labels.tolist()]
    return torch.cat([part.inputs for part in examples]).numpy(), names  # type: ignore[misc]


def assert_same_images(found: Any, names: list[str], wanted: Any, wanted_names: list[str]) -> None:
    """The same labelled pictures in any order, up to one scale and shift per channel that is the same for all of them."""
    assert found.shape == wanted.shape
    wanted = wanted.astype("float64")
    for channel in range(wanted.shape[1]):
        wanted[:, channel] -= wanted[:, channel].mean()
        wanted[:, channel] /= wanted[:, channel].std()
        found = found.astype("float64")
        found[:, channel] -= found[:, channel].mean()
        found[:, channel] /= found[:, channel].std()
    distance = np.abs(found[:, None] - wanted[None]).max(axis=(2, 3, 4))
    nearest = distance.argmin(axis=1)
    assert sorted(nearest.tolist()) == list(range(len(wanted)))
    assert distance.min(axis=1).max() < 1e-4
    assert [wanted_names[i] for i in nearest] == names


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_pixel_by_pixel(tmp_path: Path, packed: bool) -> None:
    task = images(write(tmp_path, idx_files(), packed))
    assert task.classes == ("0", "1", "2")
    assert [task.load(split).labels.bincount().tolist() for split in SPLITS] == [[10] * 3, [2] * 3, [3] * 3]
    assert_same_images(*all_rows(task, ("train", "validation")), random_images(36)[:, None], [str(label) for label in labels_of(36)])
    assert_same_images(*all_rows(task, ("test",)), random_images(9, seed=1)[:, None], [str(label) for label in labels_of(9)])


def test_idx_test_rows_keep_their_order_and_the_scale_is_that_of_train(tmp_path: Path) -> None:
    task = images(write(tmp_path, idx_files()))
    train, test = task.load("train").inputs, task.load("test").inputs
    assert isinstance(train, torch.Tensor) and isinstance(test, torch.Tensor)
    assert abs(train.mean()) < 1e-5 and abs(train.std(correction=0) - 1) < 1e-5
    raw = random_images(9, seed=1)[:, None].astype("float64")
    slope, shift = np.polyfit(raw.ravel(), test.double().numpy().ravel(), 1)
    np.testing.assert_allclose(test.numpy(), slope * raw + shift, atol=1e-5)
    pixels = random_images(36)[:, None].astype("float64")
    assert abs(pixels.mean() * slope + shift) < 0.1  # the mean of train lies near that of train and validation
    assert abs(test.mean()) > 1e-4  # the test images have a mean of their own


@pytest.mark.parametrize("form", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float16", "float64", "bool"])
def test_an_npz_is_read_whatever_its_form_and_type(tmp_path: Path, form: str, dtype: str) -> None:
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (30, 3, 8, 10)).astype(dtype)
    raw = raw[:, :1] if form == "NHW" else raw
    stored = {"NHW": raw[:, 0], "NHWC": raw.transpose(0, 2, 3, 1), "NCHW": raw}[form]
    names = [("ant", "bee", "cow")[label] for label in labels_of(30)]
    task = images(save(tmp_path / "data.npz", images=stored, labels=np.array(names)))
    assert task.classes == ("ant", "bee", "cow")
    assert [len(task.load(split)) for split in SPLITS] == [18, 6, 6]
    assert_same_images(*all_rows(task), raw, names)


def test_each_channel_is_normalised_by_itself_and_a_constant_one_stays_finite(tmp_path: Path) -> None:
    raw = random_images(30)[:, None].repeat(3, axis=1) * np.array([1.0, 100.0, 0.0])[:, None, None] + np.array([0, 5000, 7])[:, None, None]
    train = images(save(tmp_path / "data.npz", x=raw, y=labels_of(30))).load("train").inputs
    assert isinstance(train, torch.Tensor)
    torch.testing.assert_close(train.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(train.std(dim=(0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-4)


def test_an_npz_that_names_its_test_part(tmp_path: Path) -> None:
    train, test = random_images(36), random_images(9, seed=1)
    path = save(tmp_path / "data.npz", x_train=train, y_train=labels_of(36)[:, None] + 8, x_test=test, y_test=labels_of(9)[:, None] + 8)
    task = images(path)
    assert task.classes == ("8", "9", "10")
    assert [len(task.load(split)) for split in SPLITS] == [30, 6, 9]
    assert_same_images(*all_rows(task, ("test",)), test[:, None], [str(label + 8) for label in labels_of(9)])


@pytest.mark.parametrize(("x", "y"), [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_an_npz_that_names_all_splits_and_more(tmp_path: Path, x: str, y: str) -> None:
    pixels = {"train": random_images(36), "val": random_images(12, seed=1), "test": random_images(9, seed=2)}
    arrays = {form.format(split): values for split, of in pixels.items() for form, values in ((x, of), (y, labels_of(len(of))))}
    task = images(save(tmp_path / "data.npz", **arrays, weights=np.ones(3)))
    assert [len(task.load(split)) for split in SPLITS] == [36, 12, 9]
    assert_same_images(*all_rows(task, ("validation",)), pixels["val"][:, None], [str(label) for label in labels_of(12)])
    assert task.remarks == (f"passed over in {tmp_path / 'data.npz'}: the arrays weights",)


def test_what_lies_beside_arrays_is_named(tmp_path: Path) -> None:
    save(tmp_path / "test.npz", x=random_images(12), y=labels_of(12))
    task = images(save(tmp_path / "train.npz", x=random_images(30), y=labels_of(30)))
    assert task.remarks == (f"passed over beside {tmp_path / 'train.npz'}: test.npz",)
    folder = write(tmp_path / "idx", idx_files())
    write(folder, idx_files(), packed=True)
    assert images(folder).remarks[0].startswith(f"passed over in {folder}: t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz, train-")


def test_equal_rows_are_found_as_a_slow_comparison_finds_them() -> None:
    for dtype in ("uint8", "float32"):
        raw = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (600, 1, 1, 5)).astype(dtype))  # 32 different rows, in more than one block
        found = digests(raw)
        assert all((found[i] == found[j]) == torch.equal(raw[i], raw[j]) for i in range(600) for j in range(0, 600, 37))


def pictures(
    root: Path, count: int, seed: int = 0, mode: str = "RGB", suffix: str = ".png", size: tuple[int, int] = (8, 10)
) -> tuple[Any, list[str]]:
    """A folder per class with `count` pictures each; returns them (N, C, H, W) with their classes."""
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(seed)
    raw, names = [], []
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            raw.append(rng.integers(0, 256, (*size, 3) if mode == "RGB" else size, dtype="uint8"))
            names.append(name)
            Image.fromarray(raw[-1]).save(root / name / f"{i}{suffix}")
    array = np.stack(raw)
    return (array.transpose(0, 3, 1, 2) if mode == "RGB" else array[:, None]), names


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_folder_per_class(tmp_path: Path, mode: str) -> None:
    raw, names = pictures(tmp_path, 10, mode=mode)
    (tmp_path / "notes.txt").write_text("beside the classes")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"not a class")
    task = images(tmp_path)
    assert task.classes == ("cat", "dog")
    assert [len(task.load(split)) for split in SPLITS] == [12, 4, 4]
    assert_same_images(*all_rows(task), raw, names)


def test_folders_per_class_below_train_and_test(tmp_path: Path) -> None:
    train, train_names = pictures(tmp_path / "train", 12)
    test, test_names = pictures(tmp_path / "test", 3, seed=1)
    task = images(tmp_path)
    assert [len(task.load(split)) for split in SPLITS] == [20, 4, 6]
    assert_same_images(*all_rows(task, ("train", "validation")), train, train_names)
    assert_same_images(*all_rows(task, ("test",)), test, test_names)


def test_pictures_of_other_sizes_are_brought_to_the_common_one(tmp_path: Path) -> None:
    pictures(tmp_path, 10, size=(12, 15), suffix=".jpg")
    pictures(tmp_path, 4, seed=1, size=(300, 375), suffix=".jpeg")
    train = images(tmp_path).load("train").inputs
    assert isinstance(train, torch.Tensor) and train.shape[1:] == (3, 12, 15)


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    pictures(tmp_path, 4, size=(256, 256), mode="L")
    task = images(tmp_path)
    train = task.load("train").inputs
    assert isinstance(train, torch.Tensor) and train.shape[1:] == (1, 128, 128)
    assert task.embedding == PatchEmbedding(128, 128, 1, 16, overlap=5)


def test_patches_divide_the_image_into_16_to_64_tokens() -> None:
    for height in range(1, 100):
        for width in range(1, 100):
            patch, (rows, columns) = patch_and_padding(height, width)
            assert (height + rows) % patch == 0 and (width + columns) % patch == 0
            assert 0 <= rows < patch and 0 <= columns < patch
            tokens = (height + rows) * (width + columns) // patch**2
            assert 16 <= tokens <= 64 or (patch == 1 and tokens <= 64), (height, width)
    assert [patch_and_padding(side, side) for side in (8, 28, 32, 64)] == [(2, (0, 0)), (7, (0, 0)), (8, (0, 0)), (8, (0, 0))]


def test_padding_is_around_the_image_and_the_embedding_fits(tmp_path: Path) -> None:
    raw = random_images(30, 29, 29)
    task = images(save(tmp_path / "data.npz", x=raw, y=labels_of(30)))
    assert task.embedding == PatchEmbedding(30, 30, 1, 6, overlap=2) and task.tokens == 25
    train = task.load("train").inputs
    assert isinstance(train, torch.Tensor) and train.shape == (18, 1, 30, 30)
    assert (train[:, :, 29] == 0).all() and (train[:, :, :, 29] == 0).all()
    assert train[:, :, :29, :29].std(correction=0) == pytest.approx(1, abs=1e-4)
    assert task.embedding.build(16)(train).shape == (18, 25, 16)


IDX = idx_files()
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BAD_IDX = {
    "cut short": {TRAIN_IMAGES: IDX[TRAIN_IMAGES][:-10]},
    "too long": {TRAIN_IMAGES: IDX[TRAIN_IMAGES] + b"\0"},
    "cut in the header": {TRAIN_IMAGES: IDX[TRAIN_IMAGES][:7]},
    "empty": {TRAIN_LABELS: b""},
    "another kind of file": {TRAIN_IMAGES: b"hello" * 100},
    "labels for images": {TRAIN_IMAGES: IDX[TRAIN_LABELS]},
    "half a gzip": {TRAIN_IMAGES: gzip.compress(IDX[TRAIN_IMAGES])[:-500]},
    "a corrupt gzip": {TRAIN_IMAGES: gzip.compress(IDX[TRAIN_IMAGES])[:200] + b"\0" * 200 + gzip.compress(IDX[TRAIN_IMAGES])[400:]},
    "fewer labels than images": {TRAIN_LABELS: idx_labels(labels_of(35))},
    "fewer images than labels": {"t10k-images-idx3-ubyte": idx_images(random_images(8))},
    "no test images": {"t10k-images-idx3-ubyte": idx_images(random_images(0)), "t10k-labels-idx1-ubyte": idx_labels(labels_of(0))},
    "test images of another size": {"t10k-images-idx3-ubyte": idx_images(random_images(9, 10, 8))},
    "a class in test alone": {"t10k-labels-idx1-ubyte": idx_labels(labels_of(9, 4))},
    "equal images": {TRAIN_IMAGES: idx_images(np.zeros((36, 8, 8), "uint8"))},
    "one class": {TRAIN_LABELS: idx_labels(labels_of(36, 1)), "t10k-labels-idx1-ubyte": idx_labels(labels_of(9, 1))},
}


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError, match="set --data") as caught:
        images(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    assert_refused(write(tmp_path, IDX | BAD_IDX[case]))


@pytest.mark.parametrize("missing", IDX)
def test_a_missing_idx_file_is_named(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, {name: content for name, content in IDX.items() if name != missing})
    if missing.endswith("labels-idx1-ubyte") or missing.startswith("t10k"):
        assert_refused(path, missing)
    else:
        assert_refused(path, TRAIN_IMAGES)


X, Y = random_images(12), labels_of(12)
BAD_NPZ = {
    "no labels": ({"images": X}, "holds images"),
    "other names": ({"delta": X, "labels": Y}, "holds delta, labels"),
    "half a test part": ({"x_train": X, "y_train": Y, "x_test": X}, "x_train, y_train, x_test"),
    "pickled images": ({"x": np.array([X[0], "a picture"], dtype=object), "y": Y}, "cannot be read"),
    "pickled labels": ({"x": X, "y": Y.astype(object)}, "cannot be read"),
    "fewer labels": ({"x": X, "y": Y[:-1]}, "12 images and 11 labels"),
    "nothing": ({"x": X[:0], "y": Y[:0]}, "no images"),
    "flat images": ({"x": X.reshape(12, 64), "y": Y}, "(12, 64)"),
    "too many channels": ({"x": np.zeros((12, 8, 8, 8)), "y": Y}, "(12, 8, 8, 8)"),
    "complex images": ({"x": X * 1j, "y": Y}, "complex128"),
    "not a number": ({"x": np.where(X > 200, np.nan, X), "y": Y}, "not finite"),
    "labels with a fraction": ({"x": X, "y": Y / 2}, "float64"),
    "one-hot labels": ({"x": X, "y": np.eye(3)[Y].astype(int)}, "(12, 3)"),
    "one label for all": ({"x": X, "y": Y[0]}, "has shape ()"),
    "an empty label": ({"x": X, "y": np.array(["a", "b", " "] * 4)}, "an empty label in row 2"),
    "equal images": ({"x": X * 0, "y": Y}, "are equal"),
    "bytes and fractions": ({"x_train": X, "y_train": Y, "x_test": X / 255, "y_test": Y}, "the train images"),
    "two validation parts": (
        {f"{axis}_{split}": of for split in ("train", "val", "dev", "test") for axis, of in (("x", X), ("y", Y))},
        "x_val and x_dev, both for validation",
    ),
    "one class": ({"x": X, "y": Y * 0}, "'0' alone"),
    "too few": ({"x": X[:3], "y": Y[:3]}, "too few"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_NPZ[case]
    assert_refused(save(tmp_path / "bad.npz", **arrays), message)


def test_a_damaged_npz_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", x=X, y=Y).read_bytes()
    damaged = [b"", b"hello" * 100, whole[: len(whole) // 2], whole[:300] + b"\1" * 20 + whole[320:]]
    for content in damaged:
        (tmp_path / "bad.npz").write_bytes(content)
        assert_refused(tmp_path / "bad.npz")
    np.save(tmp_path / "array.npy", X)
    assert_refused((tmp_path / "array.npy").rename(tmp_path / "array.npz"))


def test_bad_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    empty, text, half = tmp_path / "empty", tmp_path / "text.txt", tmp_path / "half"
    empty.mkdir()
    text.write_text("hello")
    assert_refused(empty)
    assert_refused(text)
    with pytest.raises(UserError, match="set --data"):
        load_task("images", str(tmp_path / "missing"))
    pictures(half / "train", 4)
    (half / "test").mkdir()
    assert_refused(half, str(half / "test"))
    other = tmp_path / "other"
    pictures(other, 10)
    for content in (b"", b"hello", (other / "cat" / "0.png").read_bytes()[:120]):
        (other / "dog" / "7.png").write_bytes(content)
        assert_refused(other, "7.png")


def test_one_class_of_pictures_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    for file in (tmp_path / "dog").iterdir():
        file.unlink()
    assert_refused(tmp_path, f"{tmp_path / 'dog'} gives no pictures, it holds no files")
    (tmp_path / "dog").rmdir()
    assert_refused(tmp_path, "'cat' alone")


@pytest.mark.parametrize("values", [(0, 65535), (-1, 1)])
def test_a_pretrained_model_gets_no_values_that_it_would_take_for_others(tmp_path: Path, values: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    from tests.rl_skip.pretrained_folders import save_vit

    raw = np.random.default_rng(0).uniform(*values, (30, 12, 12))
    raw[:, 0, 0] = values[0]
    path = save(tmp_path / "data.npz", x=raw, y=labels_of(30))
    assert images(path).load("train").inputs is not None
    with pytest.raises(UserError, match=f"run from {values[0]} to .*, and a model from transformers gets 0 to 255 or 0 to 1; set --data"):
        images(path, TaskOptions(model=str(save_vit(tmp_path / "model"))))


def test_fashion_mnist() -> None:
    path = Path(os.environ.get("RL_SKIP_DATA", "")) / "fashion-mnist"
    if "RL_SKIP_DATA" not in os.environ or not path.is_dir():
        pytest.skip("RL_SKIP_DATA names no folder with fashion-mnist")
    task = load_task("images", str(path))
    assert task.classes == tuple("0123456789")
    assert task.embedding == PatchEmbedding(28, 28, 1, 7, overlap=2)
    assert [task.load(split).labels.bincount().tolist() for split in SPLITS] == [[5000] * 10, [1000] * 10, [1000] * 10]
    test = task.load("test")
    raw = np.frombuffer(gzip.decompress((path / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    assert isinstance(test.inputs, torch.Tensor)
    mean, deviation = 0.2860 * 255, 0.3530 * 255  # of the 60,000 training images, as published
    np.testing.assert_allclose(test.inputs.numpy(), (raw - mean) / deviation, atol=0.02)
