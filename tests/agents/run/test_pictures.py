"""What a run and a comparison put into TensorBoard's Images and Scalars, read back through its own reader."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator

from agents.run.pictures import show_comparison
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.result import BaselineCurve, Comparison, CurvePoint, Interval, RoutesTaken, Verdict


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0, TENSORS: 0})
    found.Reload()
    return found


def test_a_finished_run_shows_its_routes(finished_run: Any) -> None:
    events = read(finished_run.folder)
    assert {"final/run_rate", "final/flow"} <= set(events.Tags()["images"])
    for tag in ("final/run_rate", "final/flow"):
        (image,) = events.Images(tag)
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))
        assert min(pixels.shape) > 200 and len(np.unique(pixels)) > 20


def comparison(points: dict[str, list[tuple[float, float]]], **options: str) -> Comparison:
    curves = []
    for kind, pairs in points.items():
        measured = (CurvePoint("", compute, Interval(accuracy, accuracy, accuracy)) for compute, accuracy in pairs)
        curves.append(BaselineCurve(BaselineRecord(kind, f"the {kind} one"), tuple(measured), Interval(0.9, 0.9, 0.9)))
    nobody = torch.zeros(0, dtype=torch.long)
    taken = RoutesTaken(torch.zeros(0, 4, dtype=torch.bool), nobody, nobody.float(), nobody.float(), nobody)
    return Comparison(("a",), "beasts", ("ant", "bee"), 4, 0, (0,), tuple(curves), (), (), Verdict("policy", ()), (), taken, **options)


def test_a_score_that_is_no_accuracy_has_a_tag_of_its_own(tmp_path: Path) -> None:
    show_comparison(tmp_path, comparison({"policy": [(0.5, 0.25)]}, score_name="token likelihood"), [])
    assert read(tmp_path / "compare" / "the policy one").Tags()["scalars"] == ["compare/token_likelihood"]


def test_a_comparison_is_shown_once_with_accuracy_by_compute(tmp_path: Path) -> None:
    points = {"policy": [(0.2504, 0.75), (0.5, 0.875)], "fixed": [(0.25, 0.5)]}
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[:, :10, 0] = 255
    Image.fromarray(red).save(tmp_path / "flow.png")
    show_comparison(tmp_path, comparison({"gumbel": [(0.1, 0.1)]}), [])
    show_comparison(tmp_path, comparison(points), [tmp_path / "flow.png"])
    assert sorted(folder.name for folder in (tmp_path / "compare").iterdir()) == ["the fixed one", "the policy one"]
    for kind, pairs in points.items():
        scalars = read(tmp_path / "compare" / f"the {kind} one").Scalars("compare/accuracy")
        assert [(event.step, event.value) for event in scalars] == [(round(1000 * compute), accuracy) for compute, accuracy in pairs]
    (image,) = read(tmp_path / "compare" / "the policy one").Images("compare/flow")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), red)
