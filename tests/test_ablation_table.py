"""The ablation table: its rows differ in one thing and share a budget, and each run is made once."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_scores import plain_result

from common.errors import UserError
from main.config import changes, config_to_dict, load_config
from tool.dev import ablation_table as table

ROOT = Path(__file__).resolve().parent.parent


def run_of(out, row="full", seed=0, config="table", overrides=()):
    return table.planned_run(Namespace(out=out, data=out / "data", config=str(config), set=list(overrides)), row, seed)


def made_up(row, seed, mpjpe):
    return {"row": row, "seed": seed, "samples": 11872, "mpjpe": mpjpe, "mpvpe": 20.0, "mrrpe": None,
            "interval_95": {"mpjpe": [mpjpe - 1, mpjpe + 1], "mpvpe": None, "mrrpe": None}, "minus_full": None,
            "rough": {"mpjpe": 31.0, "mpvpe": 21.0}, "mean_pose": 90.0, "samples_per_second": 51.7,
            "parameters": 11_750_000, "protocol": "lgnet",
            "tested_on": {"name": "InterHand26M", "split": "test", "root": "set", "samples": 1400,
                          "samples_sha256": "ab" * 32}}


@pytest.mark.parametrize("row", table.ROWS[1:])
def test_every_row_differs_from_the_full_model_in_one_key_of_model_or_loss(row, tmp_path):
    full, other = (run_of(tmp_path, name).config for name in ("full", row))
    changed, = changes(replace(full, output=""), replace(other, output=""))
    assert changed.split(".")[0] in ("model", "loss")


def test_a_row_may_change_a_word():
    full = load_config("lgnet")
    changed, = table.row_overrides("normal_unit", full)
    assert load_config("lgnet", [changed]).loss == replace(full.loss, normal_edges="unit")


def test_seeds_and_options_reach_every_row(tmp_path):
    config = run_of(tmp_path, "wo_lgblock", seed=3, overrides=["train.epochs=2"]).config
    assert (config.train.seed, config.train.epochs, config.model.variants) == (3, 2, ("lgfa_prenorm", "wo_lgblock"))
    assert config.output == str(tmp_path / "wo_lgblock" / "seed_3") and config.data.root == str(tmp_path / "data")


@pytest.mark.parametrize(("row", "said"), [("wo_everything", "The rows are: full, lgfa_paper, wo_"),
                                           ("lgfa_prenorm", "is the full model under")])
def test_rows_that_do_not_exist_or_change_nothing_are_refused(row, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run_of(tmp_path, row)


def test_a_result_of_another_budget_is_refused_and_one_of_this_is_kept(tmp_path):
    run, longer = run_of(tmp_path), run_of(tmp_path, overrides=["train.epochs=2"])
    file = run.folder / "result" / "metrics.json"
    file.parent.mkdir(parents=True)
    run.samples.touch()
    for written, other in ((run, longer), (longer, run)):
        file.write_text(json.dumps(plain_result(config=config_to_dict(written.config))))
        table.refuse_other_result(written)
        with pytest.raises(UserError, match="train.epochs"):
            table.refuse_other_result(other)


def test_a_result_from_before_an_option_existed_is_kept_while_the_option_has_its_default(tmp_path):
    run = run_of(tmp_path)
    file = run.folder / "result" / "metrics.json"
    file.parent.mkdir(parents=True)
    run.samples.touch()
    config = config_to_dict(run.config)
    del config["data"]["more_roots"]
    file.write_text(json.dumps(plain_result(config=config)))
    table.refuse_other_result(run)
    with pytest.raises(UserError, match="data.more_roots"):
        table.refuse_other_result(run_of(tmp_path, overrides=["data.more_roots=[another]"]))


def test_the_difference_to_the_full_model_is_of_means_over_joints_and_sure_where_it_is_the_same_everywhere(tmp_path):
    """Recordings that are very unlike, in which one model is always 2 mm worse than the other."""
    runs = [run_of(tmp_path, row) for row in ("wo_lgblock", "full")]
    hard = np.array([10.0, 10.0, 90.0, 50.0])
    for run, offset in zip(runs, (2.0, 0.0), strict=True):
        run.samples.parent.mkdir(parents=True)
        (run.samples.parent / "metrics.json").write_text(json.dumps(plain_result()))
        error = np.stack([np.full((4, 2), np.nan), np.stack([hard + offset, np.full(4, np.nan)], axis=1)], axis=1)
        np.savez(run.samples, protocols=np.array(["eanet", "lgnet"]), recording=np.array(["a", "a", "b", "c"]),
                 mpjpe=error, joints_n=np.where(np.isnan(error), 0, 21).astype(np.int8))
    found = table.mpjpe_difference(*runs)
    assert found["mpjpe"] == pytest.approx(2.0) and found["interval_95"] == pytest.approx([2.0, 2.0])
    np.testing.assert_array_equal(table._joint_sums(runs[1].samples, "lgnet"), [[420, 42], [1890, 21], [1050, 21]])


def test_the_time_of_a_step_is_the_median_of_the_windows_in_the_log(tmp_path):
    run = run_of(tmp_path)
    (run.folder / "log").mkdir(parents=True)
    (run.folder / "log" / "train.log").write_text("".join(
        f"2030-01-01 00:00:00 step {25 * k}  loss/total 2.1  time/step_s {seconds}  time/data_share 0.1\n"
        for k, seconds in enumerate((9, 0.5, 0.625, 1e-1, 0.75))))
    assert table.step_seconds(run) == 0.625


def test_seeds_are_summed_up_by_mean_and_standard_deviation():
    rows = [made_up("full", 0, 30.0), made_up("full", 1, 34.0), made_up("wo_lgblock", 0, 35.0)]
    assert table.over_seeds(rows) == {"full": {"mpjpe": [32.0, pytest.approx(8 ** 0.5)], "mpvpe": [20.0, 0.0],
                                               "mrrpe": None}}


def test_the_table_has_a_line_for_each_run_and_says_what_it_was_tested_on():
    rows = [made_up("full", 0, 30.0), made_up("full", 1, 34.0)]
    rows.append(made_up("wo_lgblock", 1, 35.0) | {"minus_full": {"mpjpe": 1.0, "interval_95": [-0.5, 2.5]}})
    text = table.markdown(rows, [{"row": "wo_lgblock", "seed": 0}])
    assert "| full | 1 | 11872 | 34.00 [33.00, 35.00] | 20.00 | none |  | 31.00 | 21.00 | 52 | 11.75 M |" in text
    assert "| none | +1.00 [-0.50, +2.50] | 31.00 |" in text
    assert "| full | mean ± deviation |  | 32.00 ± 2.83 | 20.00 ± 0.00 | none |" in text
    assert "| wo_lgblock | 0 | diverged |" in text and "1400 samples of InterHand26M test in `set`" in text
    cells = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert cells == {12}
    rows[1]["tested_on"] = {**rows[1]["tested_on"], "samples_sha256": "cd" * 32}
    assert "they cannot be compared" in table.markdown(rows, [])


@pytest.mark.slow
def test_an_interrupted_row_goes_on_and_a_finished_one_is_left_alone(config_file, tmp_path, run):
    """The full row has done one of its two epochs when the table is begun."""
    run_folder, data = tmp_path / "out" / "full" / "seed_0", config_file.parent / "data"
    begun = [sys.executable, "main/train.py", "--gpu", "cpu", "--config", str(config_file), "--set", "train.epochs=1",
             f"data.root={data}", f"output={run_folder}"]
    assert subprocess.run(begun, cwd=ROOT, capture_output=True).returncode == 0

    options = ["--gpu", "cpu", "--config", config_file, "--data", data, "--out", tmp_path / "out", "--rows", "full",
               "wo_lgblock"]
    code, text = run("tool/dev/ablation_table.py", *options)
    assert code == 0 and "(2 of 2)" in text
    logs = {row: (tmp_path / "out" / row / "seed_0" / "log" / "train.log") for row in ("full", "wo_lgblock")}
    assert "at epoch 1, step" in logs["full"].read_text() and "Continuing" not in logs["wo_lgblock"].read_text()

    written = json.loads((tmp_path / "out" / "table.json").read_text())
    full, ablated = written["rows"]
    metrics = json.loads((run_folder / "result" / "metrics.json").read_text())
    assert full["samples"] == ablated["samples"] > 0 and full["parameters"] > ablated["parameters"]
    assert ablated["minus_full"]["mpjpe"] == pytest.approx(ablated["mpjpe"] - full["mpjpe"], abs=1e-3)
    assert full["mpjpe"] == metrics["protocols"]["lgnet"]["mpjpe"] and full["samples_per_second"] > 0

    before = {path: path.read_bytes() for path in logs.values()}
    assert run("tool/dev/ablation_table.py", *options)[0] == 0
    assert before == {path: path.read_bytes() for path in logs.values()}
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == written
