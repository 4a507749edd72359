"""tool/evaluate.py and tool/convert_predictions.py: a file scores as the model that made it, and as the truth says."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fixtures_interhand import write_interhand
from toy_scores import plain_scores
from toy_training import CPU, SIZE, ToyHands

from common.errors import UserError
from common.exchange.predictions import Origin, PredictionFile, PredictionWriter, join_parts
from common.hands import INTERHAND21, MANO21, WRIST, Hand, joint_regressor
from common.mano.model import HandModel
from common.score.metrics import PROTOCOLS
from common.score.scores import plain
from common.types import ManoParams, Stages, TwoHandBatch
from data import build_reader
from data.dataset import TwoHandDataset, mean_joints
from main.config import TestConfig as Settings
from main.engine.bad_samples import BadSamples
from main.engine.batches import predict
from main.engine.evaluator import Evaluator
from tool import convert_predictions, evaluate

MESH_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if protocol.truth == "mesh"]


@pytest.fixture
def root(tmp_path: Path, hand_model: HandModel) -> Path:
    """A test set of six interacting frames, and others."""
    write_interhand(tmp_path / "data", hand_model, split="test")
    return tmp_path / "data"


def dataset(root: Path, hand_model: HandModel) -> TwoHandDataset:
    reader = build_reader("InterHand26M", root=root, split="test", hand_model=hand_model, filter="ih_hm",
                          box_source="vertices")
    return TwoHandDataset(reader, size=SIZE, box_ratio=0.8)


def run(monkeypatch, tool, *arguments: object) -> int | None:
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    return tool.main()


def score(path: Path, root: Path, *overrides: str, allow_missing: bool = False) -> dict[str, Any]:
    """What tool/evaluate.py writes, without the curves, which take longer than all else."""
    file = PredictionFile(path)
    config = evaluate.configure(file, [f"data.root={root}", "data.workers=0", *overrides])
    dataset = evaluate.open_dataset(file, config)
    rows = evaluate.join(file, dataset.reader, allow_missing=allow_missing)
    tally = evaluate.score(file, rows, dataset, config, BadSamples(dataset.reader, CPU))
    return plain_scores(tally, allow_missing=allow_missing)


def truth(root: Path, hand_model: HandModel) -> dict[str, np.ndarray]:
    """What a perfect model writes: by plain numpy, from the reader's records."""
    reader = dataset(root, hand_model).reader
    records = [reader.read(index) for index in range(len(reader))]
    vertices = np.stack([record.vertices_cam for record in records])
    wrists = joint_regressor(hand_model.regressor.double()).numpy()[:, WRIST, None] @ vertices      # (N, 2, 1, 3)
    return {
        "version": 1, "dataset": "InterHand26M", "split": "test", "hand_model": "builtin",
        "image": np.array([reader.sample_id(index) for index in range(len(reader))]),
        "vertices": vertices - wrists, "relative": wrists[:, Hand.LEFT, 0] - wrists[:, Hand.RIGHT, 0],
        "rotations": np.stack([record.rotations for record in records]),
        "shape": np.stack([record.shape for record in records]),
    }


def only(values: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    kept = {"version", "dataset", "split", "hand_model", "image", *names}
    return {name: value for name, value in values.items() if name in kept}


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Plain JSON values agree, numbers to 1e-9."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_equal(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for place, value in enumerate(expected):
            assert_equal(found[place], value, f"{path}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-9, rel=0), path
    else:
        assert found == expected, path


# ---------------------------------------------------------------- as the model that made it

def toy_predictions(model: ToyHands, batch: TwoHandBatch) -> Stages:
    """The toy's predictions, but with parameters that a hand model can have."""
    stages = predict(model, batch)
    turns = torch.linalg.qr(stages.final.mano.rotations).Q
    mano = ManoParams(turns * torch.linalg.det(turns)[..., None, None], stages.final.mano.shape)
    return stages._replace(refined=stages.refined._replace(mano=mano))


@pytest.fixture
def saved(tmp_path: Path, root: Path, hand_model: HandModel) -> tuple[Path, dict[str, Any]]:
    """The file of a toy's predictions, and the scores of the test run that wrote it."""
    torch.manual_seed(0)
    path, data = tmp_path / "toy.npz", dataset(root, hand_model)
    cv2.imwrite(str(data.reader.read(2).image_path), np.zeros((data.reader.read(2).image_size[::-1]), dtype=np.uint8))
    writer = PredictionWriter(path)
    evaluator = Evaluator(partial(toy_predictions, ToyHands().eval()), data, mean_joints(data.reader),
                          settings=Settings(batch_size=4), workers=0, process=CPU, save=writer.add)
    evaluator.run()
    writer.close()
    join_parts(path, 1, Origin("InterHand26M", "test", hand_model.identity), data.reader.sample_id)
    return path, plain(evaluator.scores())


def test_a_saved_file_scores_as_the_test_run_under_every_protocol(monkeypatch, saved, root):
    """Also the sample whose picture is black: neither run counts it."""
    path, expected = saved
    found = score(path, root)
    assert found["protocols"]["lgnet"]["counts"]["mpvpe"] == 2 * 5
    for key in ("protocols", "intervals", "pck"):
        assert_equal(found[key], expected[key], key)


def test_rows_are_joined_by_name(saved, root):
    path, _ = saved
    before = score(path, root)
    with np.load(path, allow_pickle=False) as file:
        rows = {name: file[name] for name in file.files}
    for name, values in rows.items():
        rows[name] = values[[3, 0, 5, 2, 4, 1]] if values.shape[:1] == (6,) else values
    np.savez_compressed(path, **rows)
    root.rename(root.with_name("elsewhere"))
    after = score(path, root.with_name("elsewhere"))
    assert_equal(after["protocols"], before["protocols"])


def test_the_command_prints_the_lines_and_writes_metrics_and_curves_beside_the_file(monkeypatch, capsys, saved, root):
    path, expected = saved
    code = run(monkeypatch, evaluate, path, "--protocol", "interwild", "--set", f"data.root={root}", "data.workers=0")
    found = json.loads((path.parent / "toy_scores" / "metrics.json").read_text())
    assert code == 4 and found["unusable"] == expected["unusable"] and sum(found["unusable"].values()) == 1
    assert_equal(found["protocols"], json.loads(json.dumps(expected["protocols"])))
    assert found["protocol"] == "interwild" and found["counts"]["mpvpe"] == 2 * 5
    assert len(found["predictions"]["sha256"]) == 64 and found["data"]["filter"] == "ih_hm"
    lines = capsys.readouterr().out
    assert f"MPJPE for all hand sequences: {found['protocols']['interwild']['mpjpe']:.2f} mm" in lines
    assert "6 samples under the protocol 'interwild'" in lines
    assert {"pck.csv", "pck.pdf", "pck.png"} <= {file.name for file in (path.parent / "toy_scores/curves").iterdir()}


# ---------------------------------------------------------------- as the truth says

@pytest.mark.parametrize("names", [("vertices", "relative"), ("rotations", "shape", "relative")])
def test_the_truth_scores_zero_whether_as_meshes_or_as_parameters(tmp_path, root, hand_model, names):
    np.savez(tmp_path / "p.npz", **only(truth(root, hand_model), *names))
    found = score(tmp_path / "p.npz", root)
    for name in MESH_PROTOCOLS:
        summary = found["protocols"][name]
        assert max(summary["mpjpe"], summary["mpvpe"], summary["mrrpe"]) < 1e-3, name


def test_a_wrong_relative_position_changes_nothing_but_mrrpe(tmp_path, root, hand_model):
    values = truth(root, hand_model)
    values["relative"] = values["relative"] + [0.003, 0, 0.004]
    np.savez(tmp_path / "p.npz", **only(values, "vertices", "relative"))
    found = score(tmp_path / "p.npz", root)
    summary = found["protocols"]["lgnet"]
    assert summary["mpjpe"] < 1e-3 and summary["mrrpe"] == pytest.approx(5.0, abs=1e-3)


def test_joints_alone_are_scored_and_what_is_not_predicted_is_null(tmp_path, root, hand_model):
    values = truth(root, hand_model)
    values["joints"] = joint_regressor(hand_model.regressor.double()).numpy() @ values["vertices"]
    np.savez(tmp_path / "p.npz", **only(values, "joints"))
    found = score(tmp_path / "p.npz", root)
    summary = found["protocols"]["lgnet"]
    assert summary["mpjpe"] < 1e-3 and summary["mpvpe"] is None and summary["mrrpe"] is None


def test_a_failed_sample_is_counted_and_never_dropped_from_the_mean(monkeypatch, capsys, tmp_path, root, hand_model):
    values = truth(root, hand_model)
    values["vertices"][2, 0, 5] = np.nan
    np.savez(tmp_path / "p.npz", **only(values, "vertices", "relative"))
    code = run(monkeypatch, evaluate, tmp_path / "p.npz", "--set", f"data.root={root}", "data.workers=0")
    found = json.loads((tmp_path / "p_scores" / "metrics.json").read_text())
    assert code == 4 and "1 samples have predictions that are not finite" in capsys.readouterr().err
    assert found["counts"]["not_finite"] == 1 and found["protocols"]["lgnet"]["mpvpe"] is None


# ---------------------------------------------------------------- files that do not fit

def test_missing_samples_are_an_error_and_with_leave_left_out_and_counted(capsys, tmp_path, root, hand_model):
    values = only(truth(root, hand_model), "vertices", "relative")
    lost = values["image"][3]
    for name in ("image", "vertices", "relative"):
        values[name] = np.delete(values[name], 3, axis=0)
    np.savez(tmp_path / "p.npz", **values)
    with pytest.raises(UserError, match=f"1 of the 6 samples of the test set have no prediction.*{lost}"):
        score(tmp_path / "p.npz", root)
    found = score(tmp_path / "p.npz", root, allow_missing=True)
    assert found["counts"]["missing"] == 1 and found["counts"]["samples"] == 5
    assert lost in capsys.readouterr().out
    assert found["protocols"]["lgnet"]["mpvpe"] < 1e-3


def test_samples_of_another_set_are_an_error(tmp_path, root, hand_model):
    values = only(truth(root, hand_model), "vertices", "relative")
    values["image"] = values["image"].astype("U80")
    values["image"][0] = "Capture9/unknown.jpg"
    np.savez(tmp_path / "p.npz", **values)
    with pytest.raises(UserError, match="not in the test set, such as 'Capture9/unknown.jpg'"):
        score(tmp_path / "p.npz", root)
    values["image"] = np.char.add(values["image"], "?")
    np.savez(tmp_path / "p.npz", **values)
    with pytest.raises(UserError, match="6 of the 6 samples"):      # nothing is left to score
        score(tmp_path / "p.npz", root, allow_missing=True)


def test_a_hand_that_was_not_predicted_is_an_error_and_with_leave_left_out(tmp_path, root, hand_model):
    values = only(truth(root, hand_model), "vertices", "relative")
    values["predicted"] = np.ones((6, 2), dtype=bool)
    values["predicted"][1, Hand.LEFT] = False
    values["vertices"][1, Hand.LEFT] = np.nan
    np.savez(tmp_path / "p.npz", **values)
    with pytest.raises(UserError, match="1 annotated hands"):
        score(tmp_path / "p.npz", root)
    found = score(tmp_path / "p.npz", root, allow_missing=True)
    assert found["counts"]["missing_hands"] == 1 and found["counts"]["not_finite"] == 0
    counts = found["protocols"]["lgnet"]["counts"]
    assert (counts["mpvpe"], counts["mrrpe"]) == (11, 5) and found["protocols"]["lgnet"]["mpvpe"] < 1e-3


def test_another_split_or_set_than_the_file_names_is_refused(tmp_path, root, hand_model):
    np.savez(tmp_path / "p.npz", **only(truth(root, hand_model), "vertices"))
    with pytest.raises(UserError, match="holds predictions for InterHand26M test, not for HIC test"):
        score(tmp_path / "p.npz", root, "data.testset=HIC")


# ---------------------------------------------------------------- other people's models

def test_interwild_files_become_a_file_that_scores(monkeypatch, tmp_path, root, hand_model):
    """Parameters out to a folder and in again: the truth stays the truth."""
    np.savez(tmp_path / "p.npz", **only(truth(root, hand_model), "rotations", "shape", "relative"))
    run(monkeypatch, convert_predictions, "export", "interwild", tmp_path / "p.npz", tmp_path / "params")
    assert len(list((tmp_path / "params").rglob("*_left.json"))) == 6
    run(monkeypatch, convert_predictions, "import", "interwild", tmp_path / "params", tmp_path / "q.npz")
    found = score(tmp_path / "q.npz", root)
    summary = found["protocols"]["lgnet"]
    assert max(summary["mpjpe"], summary["mpvpe"], summary["mrrpe"]) < 1e-3


@pytest.mark.parametrize("flags", [
    ("matrices", "--pivot", "mano", "--unit", "mm"), ("matrices", "--left_hand", "mirrored"),
    ("points", "--unit", "mm", "--order", "interhand21", "--frame", "camera"), ("points", "--left_hand", "mirrored"),
])
def test_arrays_go_out_and_in_by_the_same_flags(monkeypatch, tmp_path, root, hand_model, flags):
    values = only(truth(root, hand_model), "vertices", "rotations", "shape", "relative")
    np.savez(tmp_path / "p.npz", **values)
    run(monkeypatch, convert_predictions, "export", flags[0], tmp_path / "p.npz", tmp_path / "arrays.npz", *flags[1:])
    run(monkeypatch, convert_predictions, "import", flags[0], tmp_path / "arrays.npz", tmp_path / "q.npz", *flags[1:])
    before, after = (PredictionFile(tmp_path / name).take(slice(None)) for name in ("p.npz", "q.npz"))
    np.testing.assert_allclose(after.relative, before.relative, atol=1e-9)
    for name in ("vertices",) if flags[0] == "points" else ("rotations", "shape"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-8, err_msg=name)
    found = score(tmp_path / "q.npz", root)
    assert found["protocols"]["lgnet"]["mpvpe"] < 1e-3


def test_mirrored_left_hands_are_written_as_right_ones(monkeypatch, tmp_path, root, hand_model):
    values = only(truth(root, hand_model), "vertices", "relative")
    np.savez(tmp_path / "p.npz", **values)
    run(monkeypatch, convert_predictions, "export", "points", tmp_path / "p.npz", tmp_path / "arrays.npz",
        "--left_hand", "mirrored")
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["vertices"][:, Hand.RIGHT], values["vertices"][:, Hand.RIGHT])
        np.testing.assert_array_equal(arrays["vertices"][:, Hand.LEFT], values["vertices"][:, Hand.LEFT] * [-1, 1, 1])


def test_joints_in_millimetres_in_the_camera_frame_in_interhand_s_order_are_scored(monkeypatch, tmp_path, root,
                                                                                    hand_model):
    """What a joint network gives; it is compared with the annotated joints under InterHand2.6M's own protocol."""
    reader = dataset(root, hand_model).reader
    records = [reader.read(index) for index in range(len(reader))]
    joints = np.stack([record.joints_annotated_cam for record in records])[:, :, INTERHAND21.gather_from(MANO21)]
    np.savez(tmp_path / "joints.npz", image=[reader.sample_id(index) for index in range(len(reader))],
             joints=joints * 1000 + [10, -20, 30])
    run(monkeypatch, convert_predictions, "import", "points", tmp_path / "joints.npz", tmp_path / "p.npz",
        "--unit", "mm", "--order", "interhand21", "--frame", "camera")
    found = score(tmp_path / "p.npz", root)
    summary = found["protocols"]["internet"]
    assert max(summary["mpjpe"], summary["mrrpe"]) < 1e-3


@pytest.mark.parametrize(("arrays", "message"), [
    ({"joints": np.zeros((2, 2, 21, 3))}, "It must hold some of image"),
    ({"image": ["a", "b"]}, "lacks vertices or joints"),
    ({"image": ["a", "b"], "joints": np.zeros((2, 2, 20, 3))}, "joints has the type float64 and the shape (2, 2, 20"),
    ({"image": ["a", "b"], "joints": np.zeros((2, 2, 21, 3), int)}, "joints has the type int64"),
    ({"image": ["a"], "joints": np.zeros((1, 2, 21, 3)), "relative": np.zeros((1, 3))}, "'relative', which points in"),
    ({"image": ["a", "b"], "joints": np.array([None, None])}, "is not an .npz file of plain arrays"),
])
def test_wrong_arrays_are_refused_with_the_file_and_the_reason(monkeypatch, tmp_path, arrays, message):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(UserError) as caught:
        run(monkeypatch, convert_predictions, "import", "points", tmp_path / "in.npz", tmp_path / "p.npz", "--frame",
            "camera")
    assert "in.npz" in str(caught.value) and message in str(caught.value)
