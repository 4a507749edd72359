"""Sets that stand still: what their splits share, when a set is one, and who may render or freeze one."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from common.errors import UserError, run_entry_point
from common.mano.load import load_hand_model
from data.InterHand26M.reader import InterHand26M
from data.synthetic.on_disk import generate as generator
from data.synthetic.on_disk import plan
from data.synthetic.on_disk import preset as presets
from data.synthetic.on_disk.plan import SPLITS, Purpose, Settings, plan_sequences, stream
from tool import make_synthetic, verify_data

FROZEN = "rendered-v1"
SMALL = Settings(frames=6, seed=11, cameras=1, interacting=0.7)


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("preset") / "set"
    generator.generate(root, SMALL, workers=1)
    return root


@pytest.fixture(scope="module")
def small(small_root):
    """A preset of six pictures, frozen by this code."""
    folder = small_root.parent
    unfrozen = presets.Preset("small", SMALL, generator.VERSION, load_hand_model("builtin").identity, {})
    presets.record_preset(small_root, unfrozen, folder)
    return presets.load_preset("small", folder)


@pytest.fixture
def copied(small_root, tmp_path):
    """The small set, to be damaged."""
    for file in (path for path in small_root.rglob("*") if path.is_file()):
        target = tmp_path / "copy" / file.relative_to(small_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path / "copy"


def run(tool, monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["tool", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_entry_point(tool.main)
    return left.value.code


def edited_json(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def keys_of(settings, split):
    """What everything in a split is drawn from: people and places, pictures, and the first number of each stream."""
    people, pictures, numbers = set(), set(), set()
    for sequence in (planned for planned in plan_sequences(settings) if planned.split == split):
        capture = plan.capture_of(settings, split, sequence.capture)
        for frame in sequence.frames:
            shots = [generator.Shot("", frame, None, camera) for camera in capture.cameras]
            keys = generator.image_keys(settings, sequence, shots)
            people |= set(torch.cat([keys.person, keys.place]).tolist())
            pictures |= set(torch.cat([keys.step, keys.picture]).tolist())
            numbers.add(stream(settings, split, sequence.capture, Purpose.CAMERAS, frame).random())
        numbers |= {rng.random() for rng in plan.pose_streams(settings, sequence)}
        numbers |= {capture.shape.tobytes(), capture.rotation.tobytes(), capture.cameras[0].position.tobytes()}
    return people, pictures, numbers


# ---------------------------------------------------------------- the splits

def test_splits_of_the_benchmark_share_no_person_no_place_no_picture_and_no_pose():
    """All keys and the start of all streams, from the functions that rendering takes them from."""
    settings = presets.load_preset(FROZEN).settings
    train, val, test = (keys_of(settings, split) for split in SPLITS)
    for one, other in ((train, val), (train, test), (val, test)):
        for mine, yours in zip(one, other, strict=True):
            assert mine and yours and not mine & yours
    assert [len(people) for people, *_ in (train, val, test)] == [400, 25, 50]


def test_the_benchmark_has_14000_pictures_in_three_splits():
    images = {split: 0 for split in SPLITS}
    for sequence in plan_sequences(presets.load_preset(FROZEN).settings):
        images[sequence.split] += sum(sequence.images)
    assert images == {"train": 11900, "val": 700, "test": 1400}


# ---------------------------------------------------------------- is it the preset?

def test_the_set_that_was_recorded_is_the_preset_number_for_number(small_root, small):
    assert presets.compare(small_root, small) == ([], [])


def test_a_set_computed_on_another_machine_is_still_the_preset(copied, small):
    """Joints off by a tenth of a millimetre, pictures by a grey level."""
    def shift(tables):
        for frames in tables.values():
            for entry in frames.values():
                entry["world_coord"][0][0] += 0.1
    edited_json(copied / "annotations/test/InterHand2.6M_test_joint_3d.json", shift)
    file = next((copied / "images/test").rglob("*.jpg"))
    cv2.imwrite(str(file), cv2.add(cv2.imread(str(file)), (1, 1, 1, 0)))
    differences = presets.compare(copied, small)
    assert not differences.other and len(differences.rounding) == 2
    assert "as another machine computes it" in presets.verdict(copied, small, differences)


def test_other_pictures_missing_pictures_and_other_time_steps_are_another_set(copied, small):
    files = sorted((copied / "images/train").rglob("*.jpg"))
    for file in files:
        cv2.imwrite(str(file), cv2.imread(str(file))[:, ::-1])
    next((copied / "images/val").rglob("*.jpg")).unlink()
    edited_json(copied / "annotations/test/InterHand2.6M_test_data.json",
                lambda tables: tables["images"][0].update(frame_idx=7))
    text = presets.verdict(copied, small, presets.compare(copied, small))
    for said in ("is not small", "train has other images", "1 of 1 images of val are missing",
                 "test shows other people or time steps"):
        assert said in text


def test_other_settings_are_told_by_name(copied, small):
    differences = presets.compare(copied, replace(small, settings=replace(SMALL, seed=12)))
    assert differences.other == ["seed is 11 instead of 12"]


def test_a_time_step_rendered_alone_is_as_it_was_recorded(small, tmp_path):
    """Of the small preset and, once that is frozen, of the benchmark's test split, of which another kind of processor
    may settle a time step otherwise."""
    for preset, strays in ((small, 0), (presets.load_preset(FROZEN), 1)):
        if preset.splits and preset.version == generator.VERSION:
            references = preset.splits["test"]["references"][:3]
            met = [presets.resembles(rendered_alone(preset.settings, "test", reference, tmp_path), reference)
                   for reference in references]
            assert met.count(False) <= strays and any(met)


def test_the_small_preset_is_rendered_pixel_for_pixel(small, tmp_path):
    """Sequences rendered alone, in one process and on one thread as the set was."""
    for sequence in plan_sequences(SMALL):
        generator.render_sequence((tmp_path, SMALL, sequence))
    recorded = [(split, reference) for split in SPLITS for reference in small.splits[split]["references"]]
    assert len(recorded) == 6
    for split, reference in recorded:
        assert described(tmp_path, split, reference["file_name"])["sha256"] == reference["sha256"]


def rendered_alone(settings, split, reference, root):
    """What would be recorded of a picture if its time step were all that is rendered."""
    capture, name, _, image = reference["file_name"].split("/")
    frame = int(image.removeprefix("image").removesuffix(".jpg"))
    sequence, = (planned for planned in plan_sequences(settings) if
                 (planned.split, f"Capture{planned.capture}", planned.name) == (split, capture, name))
    alone = replace(sequence, first_frame=frame, images=(sequence.images[frame - sequence.first_frame],))
    generator.render_sequence((root, settings, alone))
    return described(root, split, reference["file_name"], generator.part_file(root, alone))


def described(root, split, name, part_file=None):
    if part_file is None:
        capture, sequence = name.split("/")[:2]
        part_file = root / "annotations" / split / "sequences" / f"{capture}_{sequence}.json"
    pictures = json.loads(part_file.read_text())["pictures"]
    picture, = (picture for picture in pictures if picture["image"]["file_name"] == name)
    return presets.describe_image(root, split, picture["image"], picture["annotation"])


# ---------------------------------------------------------------- who may render and freeze

@pytest.mark.parametrize("flags", [("--frames", "8"), ("--seed", "0"), ("--cameras", "2"), ("--interacting", "0.8")])
def test_a_preset_refuses_settings_beside_it(flags, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    assert run(make_synthetic, monkeypatch, "--out", out, "--preset", FROZEN, *flags) == 2
    error = capsys.readouterr().err
    assert flags[0] in error and error.count("\n") == 1 and not out.exists()


def test_a_preset_needs_the_renderer_and_the_hand_it_was_frozen_with(small):
    small.check_code()
    with pytest.raises(UserError, match=f"renders version {generator.VERSION}, small needs 99"):
        replace(small, version=99).check_code()
    with pytest.raises(UserError, match="small needs 000000"):
        replace(small, hand_model={"name": "builtin", "sha256": "0" * 64}).check_code()


def test_a_frozen_preset_is_not_recorded_again_and_an_unfrozen_one_not_rendered(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_synthetic, "load_preset", lambda name: small)
    assert run(make_synthetic, monkeypatch, "--out", tmp_path / "set", "--preset", "small", "--record") == 2
    assert "small is frozen" in capsys.readouterr().err
    monkeypatch.setattr(make_synthetic, "load_preset", lambda name: replace(small, splits={}))
    assert run(make_synthetic, monkeypatch, "--out", tmp_path / "set", "--preset", "small") == 2
    assert "not been recorded" in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_both_tools_say_whether_a_folder_is_the_preset(small_root, small, copied, monkeypatch, capsys):
    for tool in (make_synthetic, verify_data):
        monkeypatch.setattr(tool, "load_preset", lambda name: small)
    assert run(make_synthetic, monkeypatch, "--out", small_root, "--preset", "small", "--workers", 1) == 0
    assert "is small, number for number" in capsys.readouterr().out
    edited_json(copied / "synthetic.json", lambda metadata: metadata.update(version=1))
    assert run(verify_data, monkeypatch, "--set", f"data.root={copied}", "--preset", "small") == 4
    assert "is not small: version is 1 instead of" in capsys.readouterr().out


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=FROZEN):
        presets.load_preset("rendered-v0")


# ---------------------------------------------------------------- sets of earlier versions

def test_a_set_of_an_earlier_version_is_read_but_not_rendered_further(copied, small_root, hand_model):
    edited_json(copied / "synthetic.json", lambda metadata: metadata.update(version=1))
    old, new = (InterHand26M(root, "train", hand_model) for root in (copied, small_root))
    assert len(old) == len(new) > 0
    np.testing.assert_array_equal(old.read(0).vertices_cam, new.read(0).vertices_cam)
    with pytest.raises(UserError, match="version 1 instead of"):
        generator.generate(copied, SMALL, workers=1)


def test_a_set_of_an_earlier_hand_is_refused_because_its_meshes_are_not_those_of_this_hand(copied, hand_model):
    edited_json(copied / "hand_model.json", lambda metadata: metadata.update(sha256="0" * 64))
    with pytest.raises(UserError, match="000000"):
        InterHand26M(copied, "train", hand_model)
