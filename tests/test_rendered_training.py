"""Training on samples that are drawn anew on the device instead of read from the files of a rendered set."""

import json

import pytest
import torch

from common.errors import UserError
from data import build_reader
from data.synthetic import SETTINGS_FILE
from data.synthetic.batches import RenderedBatches
from data.synthetic.on_disk.generate import generate, settings_of
from data.synthetic.on_disk.plan import Settings
from main.engine.run.snapshots import load_latest

SETTINGS = Settings(frames=12, seed=4, cameras=2)
TINY_MODEL = ["model.backbone=resnet18", "model.pretrained=", "model.input_size=64", "model.channels=32",
              "model.variants=[lgfa_prenorm]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    generate(folder, SETTINGS, workers=1)
    return folder


def rendered(root, hand_model):
    reader = build_reader("InterHand26M", root=root, split="train", hand_model=hand_model, filter="all",
                          box_source="vertices")
    return reader, RenderedBatches.of_set(reader, root, "train", size=64, box_ratio=0.8, seed=0,
                                          device=torch.device("cpu"))


def test_each_index_shows_the_hands_of_the_readers_record_to_another_camera(root, hand_model):
    reader, batches = rendered(root, hand_model)
    batch = batches.batch(0, torch.arange(len(reader)))
    turned = 0
    for index in range(len(reader)):
        record, found = reader.read(index), batch.targets.vertices[index]
        assert record.vertices_valid.tolist() == batch.targets.vertices_valid[index].bool().tolist()
        for hand in record.vertices_valid.nonzero()[0]:
            stored = torch.from_numpy(record.vertices_cam[hand, ::50]).float()
            torch.testing.assert_close(torch.cdist(stored, stored), torch.cdist(*[found[hand, ::50]] * 2), atol=2e-4,
                                       rtol=0)
            turned += (stored - stored[:1] - (found[hand, ::50] - found[hand, :1])).norm(dim=-1).max() > 0.005
    assert turned > len(reader) / 2


def test_a_run_on_samples_drawn_anew_can_be_cut_and_continued_exactly(root, run, tmp_path):
    def train(output, *more):
        code, printed = run("train.py", "--gpu", "cpu", *more, "--set", *TINY_MODEL, f"data.root={root}",
                            "data.filter=all", "data.render_anew=true", "train.batch_size=4", "train.epochs=2",
                            "train.validate_every=0", f"output={output}")
        assert code == 0, printed
        return printed

    train(tmp_path / "whole")
    train(tmp_path / "cut")
    (tmp_path / "cut" / "model_dump" / "snapshot_1.pth.tar").unlink()
    train(tmp_path / "cut", "--continue")
    whole, cut = (load_latest(tmp_path / name / "model_dump")[0] for name in ("whole", "cut"))
    assert whole.step == cut.step
    for name, value in whole.model.items():
        assert torch.equal(value, cut.model[name]), name


@pytest.mark.parametrize(("key", "value"), [("version", 1), ("hand_model", {"name": "builtin", "sha256": "0" * 64})])
def test_a_set_of_another_renderer_or_hand_is_not_drawn_anew(root, tmp_path, key, value):
    settings = json.loads((root / SETTINGS_FILE).read_text())
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings | {key: value}))
    with pytest.raises(UserError, match=key.replace("_", ".")):
        settings_of(tmp_path)


def test_a_set_that_was_not_rendered_is_refused(tmp_path):
    with pytest.raises(UserError, match="no rendered set"):
        settings_of(tmp_path)
