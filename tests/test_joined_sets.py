"""Several folders of a dataset are trained on as one set, told apart wherever a person has to find something."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_interhand import write_interhand
from test_run_record import command_line  # noqa: F401   the record of a run names how it was started
from toy_training import toy_trainer

from common.errors import UserError
from data import build_reader
from data.subset import EvenSubset, JoinedReader
from main.build import build_training_samples
from main.config import Config, DataConfig, ModelConfig, TrainConfig, load_config
from main.engine.batches import SamplesOnDisk
from main.engine.run.provenance import portable
from main.engine.run.record import read_record
from tool.doctor import report_run

CONFIG = Config(data=DataConfig(filter="all"), model=ModelConfig(input_size=32),
                train=TrainConfig(epochs=1, lr_drops=()))


@pytest.fixture(scope="module")
def roots(tmp_path_factory, hand_model) -> list[Path]:
    """Two sets that name their pictures alike and show different hands."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in (3, 5):
        write_interhand(folder / str(seed), hand_model, seed=seed)
    return [folder / "3", folder / "5"]


@pytest.fixture(scope="module")
def readers(roots, hand_model):
    return [build_reader("InterHand26M", root=root, split="train", hand_model=hand_model, filter="all",
                         box_source="vertices") for root in roots]


def config_of(roots: list[Path], output: Path) -> Config:
    return replace(CONFIG, output=str(output),
                   data=replace(CONFIG.data, root=str(roots[0]), more_roots=tuple(map(str, roots[1:]))))


def test_every_record_of_every_set_is_there_once_and_keeps_its_order(readers):
    uneven = [EvenSubset(readers[0], 2), readers[1], EvenSubset(readers[0], 1)]
    joined = JoinedReader(uneven)
    expected = [(reader, own) for reader in uneven for own in range(len(reader))]
    assert len(joined) == len(expected) == len(readers[1]) + 3
    for index, (reader, own) in enumerate(expected):
        assert joined.describe(index) == reader.describe(own)
        assert joined.sample_id(index) == reader.sample_id(own)
        np.testing.assert_array_equal(joined.read(index).joints_cam, reader.read(own).joints_cam)
    with pytest.raises(IndexError):
        joined.read(len(joined))


def test_what_is_left_out_is_counted_over_all_sets(readers):
    joined = JoinedReader(readers)
    assert sum(joined.left_out.values()) > 0
    assert joined.left_out == Counter(readers[0].left_out) + Counter(readers[1].left_out)
    assert joined.broken().keys() == readers[0].broken().keys() | readers[1].broken().keys()
    assert all(str(reader.layout.data) in joined.summary for reader in readers)


def samples_of(config, hand_model) -> SamplesOnDisk:
    return build_training_samples(config, hand_model, torch.device("cpu"))


def test_training_reads_all_folders_that_the_configuration_names(roots, readers, hand_model, tmp_path):
    dataset = samples_of(config_of(roots, tmp_path), hand_model).dataset
    assert len(dataset) == len(readers[0]) + len(readers[1])
    folders = {Path(dataset.reader.describe(index)["path"]).relative_to(roots[0].parent).parts[0]
               for index in range(len(dataset))}
    assert folders == {"3", "5"}
    assert toy_trainer(dataset, tmp_path, epochs=1, lr_drops=()).fit() == 0


def test_the_record_of_a_run_and_its_report_know_every_folder(roots, hand_model, tmp_path, capsys):
    for root in roots:
        (root / "synthetic.json").write_text(f'{{"frames": 40, "seed": {root.name}, "cameras": 2, "interacting": 0.8}}')
    config = config_of(roots, tmp_path)
    dataset = samples_of(config, hand_model).dataset
    assert toy_trainer(dataset, tmp_path, config=config, epochs=1, lr_drops=()).fit() == 0
    data = read_record(tmp_path)[0].data
    assert [folder["rendered"]["seed"] for folder in data["more_roots"]] == [5]
    assert {name.split("/")[0] for name in data["annotations"]} == {"0", "1"}
    report_run(tmp_path)
    text = capsys.readouterr().out
    for root in roots:
        assert f"make_synthetic.py --out {portable(str(root))} --frames 40 --seed {root.name} " in text
    assert "data        the same" in text

    write_interhand(roots[1], hand_model, seed=6)
    report_run(tmp_path)
    assert "data        differs: annotations.1/InterHand2.6M_train_" in capsys.readouterr().out
    write_interhand(roots[1], hand_model, seed=5)


def test_a_set_of_another_hand_model_is_refused_among_others(roots, hand_model, tmp_path):
    other = tmp_path / "other"
    write_interhand(other, hand_model, seed=7)
    named = other / "hand_model.json"
    named.write_text(named.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(UserError, match=str(other)):
        samples_of(config_of([roots[0], other], tmp_path), hand_model)


def test_folders_are_named_as_a_list_and_none_can_be_drawn_anew(roots):
    config = load_config("quickstart", ["data.more_roots=[one, two]"])
    assert config.data.more_roots == ("one", "two")
    with pytest.raises(UserError, match="data.more_roots"):
        load_config("quickstart", ["data.more_roots=[one]", "data.render_anew=true"])
