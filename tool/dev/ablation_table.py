"""Train the rows of the ablation table with one budget, test them, and write the table.

    python tool/dev/ablation_table.py --data DIR --out DIR [--rows full wo_lgblock …] [--seeds 0 1]
                                      [--set train.epochs=2]

A row is the configuration with one change: `full` has none, the others are files of main/configs/ablation and the
readings below. Each row and seed is a run of main/train.py and main/test.py in a folder of its own, OUT/ROW/seed_N.
Started again, the tool leaves finished runs alone and goes on with interrupted ones. After each run OUT/table.md and
OUT/table.json are written anew, of the rows asked for.
"""

import _bootstrap

import argparse
import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.errors import EXIT_DIVERGED, EXIT_OK, EXIT_SOME_FAILED, UserError, run_entry_point
from common.files import (
    ROOT,
    write_atomically,
    write_json,
)
from common.mano.load import load_hand_model
from common.nets.variants import VARIANTS
from common.score.metrics import interval_95
from common.score.scores import TestResult, plain, read_result
from main.arguments import GPU_FORMS
from main.build import build_trained_model
from main.config import CONFIG_DIR, Config, config_from_dict, config_to_dict, load_config
from main.engine.run.provenance import differences, portable
from main.engine.run.snapshots import load_latest, snapshots_in

LGFA_PAPER = "lgfa_paper"       # the table's network without its variant of LGFA
# Those of the paper's Table III, then other readings of what it leaves open.
ROWS = ("full", "wo_joint_stage", "wo_mesh_stage", "wo_refine_stage", "wo_lr_feature", "wo_lgblock", "wo_local_unit",
        "wo_global_unit", "wo_normal_loss", "wo_edge_loss", "wo_laplacian_loss",
        "lgfa_paper", "local_graph_mesh63", "local_graph_none", "graph_conv_cheb", "shape_from_joints",
        "refine_from_joints")
METRICS = ("mpjpe", "mpvpe", "mrrpe")
_RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One row trained from one seed."""

    row: str
    seed: int
    folder: Path
    config_name: str
    overrides: tuple[str, ...]

    @property
    def config(self) -> Config:
        return load_config(self.config_name, list(self.overrides))

    @property
    def samples(self) -> Path:
        """The errors of each sample, which main/test.py writes last."""
        return self.folder / "result" / "samples.npz"

    @property
    def result(self) -> TestResult | None:
        """What main/test.py wrote, None before it has written all."""
        file = self.folder / "result" / "metrics.json"
        return read_result(file) if file.is_file() and self.samples.is_file() else None


def main() -> int:
    args = _parse_args()
    runs = [planned_run(args, row, seed) for row in dict.fromkeys(args.rows) for seed in dict.fromkeys(args.seeds)]
    for run in [*runs, *(planned_run(args, "full", seed) for seed in args.seeds)]:     # all are compared with `full`
        refuse_other_result(run)
    rows, diverged = [], []
    for number, run in enumerate(runs, start=1):
        print(f"\n=== {run.row}, seed {run.seed} ({number} of {len(runs)}) ===", flush=True)
        code = finish(run, ["--gpu", args.gpu] if args.gpu else [])
        if code == EXIT_OK:
            rows.append(summary(run, planned_run(args, "full", run.seed)))
        elif code == EXIT_DIVERGED:
            diverged.append({"row": run.row, "seed": run.seed})
        else:
            print(f"{run.row}, seed {run.seed} stopped with exit code {code}; the same command goes on with it.",
                  file=sys.stderr)
            return code
        write_table(args.out, rows, diverged)
    print("\n" + (args.out / "table.md").read_text(encoding="utf-8"))
    return EXIT_SOME_FAILED if diverged else EXIT_OK


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the set, such as one of preset rendered-v1")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--config", default="table", help="of every row, as for train.py")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help=f"default: {' '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument("--gpu", help=GPU_FORMS)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change the configuration of every row, for example train.epochs=2")
    return parser.parse_args()


# ---------------------------------------------------------------- rows

def planned_run(args: argparse.Namespace, row: str, seed: int) -> Run:
    folder = args.out.absolute() / row / f"seed_{seed}"
    common = [*args.set, f"data.root={args.data.absolute()}", f"output={folder}",
              f"train.seed={seed}"]
    full = load_config(args.config, common)
    run = Run(row, seed, folder, args.config, (*common, *row_overrides(row, full)))
    if row != "full" and run.config == full:
        raise UserError(f"The row '{row}' is the full model under the configuration '{args.config}'.",
                        "Leave it out of --rows.")
    return run


def row_overrides(row: str, full: Config) -> list[str]:
    """What a row changes in the full model's configuration, as `a.b=c`."""
    variants = full.model.variants
    if row == "full":
        return []
    if row == LGFA_PAPER:
        return [f"model.variants={json.dumps([name for name in variants if name != 'lgfa_prenorm'])}"]
    if row in VARIANTS:
        return [f"model.variants={json.dumps(list(dict.fromkeys([*variants, row])))}"]
    file = CONFIG_DIR / "ablation" / f"{row}.yaml"
    if not file.is_file():
        losses = sorted(path.stem for path in file.parent.glob("*.yaml") if path.stem not in VARIANTS)
        raise UserError(f"There is no row '{row}'.",
                        f"The rows are: {', '.join(['full', LGFA_PAPER, *VARIANTS, *losses])}.")
    changes = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    del changes["base"]
    return [f"{section}.{key}={value}" for section, values in changes.items()
            for key, value in values.items()]


def refuse_other_result(run: Run) -> None:
    """A finished run must be of the configuration asked for: rows with other budgets cannot be compared."""
    if run.result is None:
        return
    before = config_from_dict(run.result.config)     # options that did not exist then have their defaults
    changed = differences(portable(config_to_dict(before)), portable(config_to_dict(run.config)))
    if changed:
        told = ", ".join(f"{key} {change}" for key, change in changed.items())
        raise UserError(f"{run.folder} holds a result of another configuration: {told}.",
                        "Give another --out, the old options, or remove that folder.")


# ---------------------------------------------------------------- running

def finish(run: Run, gpu: list[str]) -> int:
    """Train and test what is missing of a run; the exit code of what stopped it."""
    if run.result:
        return EXIT_OK
    resume = ["--continue"] if snapshots_in(run.folder / "model_dump") else []
    train = ["main/train.py", "--config", run.config_name, *gpu, *resume, "--set", *run.overrides]
    code = _call(train)
    if code != EXIT_OK:
        return code
    code = _call(["main/test.py", "--test_epoch", run.config.train.epochs - 1, "--output", run.folder, "--dump",
                  run.samples, *gpu])
    return EXIT_OK if run.result else code         # 4 tells of samples that are in no mean: counted in the result


def _call(words: list[Any]) -> int:
    program, *arguments = words
    process = subprocess.Popen([sys.executable, str(ROOT / program), *map(str, arguments)])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()                              # it got the same signal, and saves its state
        raise


# ---------------------------------------------------------------- the table

def summary(run: Run, full: Run) -> dict[str, Any]:
    """The numbers of a finished run as plain values, mm.  full: the full model's run from the same seed."""
    result, config = run.result, run.config
    assert result is not None, "the run is finished"
    scores = plain(result.printed)
    snapshot, _ = load_latest(run.folder / "model_dump")
    hand_model = load_hand_model(config.hand_model.name, config.hand_model.path)
    model = build_trained_model(config.model, hand_model, snapshot.model, where=str(run.folder))
    per_step = config.train.batch_size * config.train.accumulate * snapshot.world_size
    return {
        "row": run.row, "seed": run.seed, "samples": snapshot.step * per_step,
        **{name: scores[name] for name in METRICS},
        "interval_95": {name: scores["interval_95"] and scores["interval_95"][name] for name in METRICS},
        "minus_full": mpjpe_difference(run, full) if full.result and run != full else None,
        "rough": plain(result.rough), "mean_pose": result.baseline.mean_pose.mpjpe,
        "samples_per_second": per_step / step_seconds(run), "parameters": sum(p.numel() for p in model.parameters()),
        "tested_on": result.data | {"samples": result.counts.samples}, "protocol": result.protocol,
    }


def mpjpe_difference(run: Run, full: Run) -> dict[str, Any]:
    """A run's MPJPE minus that of the full model, with its 95 % interval over recordings.

    Both are tested on the same samples, so a resample of recordings is drawn for both at once: what makes a recording
    hard for both drops out.
    """
    sums = [_joint_sums(each.samples, each.result.protocol) for each in (run, full) if each.result]       # (G, 2) each
    count = len(sums[0])
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    means = [(weights @ of_run)[:, 0] / (weights @ of_run)[:, 1] for weights in (np.ones((1, count)), drawn)
             for of_run in sums]
    return {"mpjpe": float(means[0][0] - means[1][0]), "interval_95": interval_95(means[2] - means[3]).tolist()}


def _joint_sums(file: Path, protocol: str) -> np.ndarray:
    """The sum of joint errors in mm and the number of joints of each recording, ordered by name: (G, 2)."""
    with np.load(file, allow_pickle=False) as rows:
        number = rows["protocols"].tolist().index(protocol)
        count, error = rows["joints_n"][:, number].astype(float), rows["mpjpe"][:, number]     # (N, 2 hands)
        _, recording = np.unique(rows["recording"], return_inverse=True)
    total = np.where(count > 0, error, 0.0) * count
    return np.stack([np.bincount(recording, values.sum(axis=1)) for values in (total, count)], axis=1)


def step_seconds(run: Run) -> float:
    """Of a training step: the median over the windows of the log, which start-up and saving hardly touch."""
    log = (run.folder / "log" / "train.log").read_text(encoding="utf-8")
    return statistics.median(map(float, re.findall(r"time/step_s ([\d.e+-]+)", log)))


def write_table(folder: Path, rows: list[dict[str, Any]], diverged: list[dict[str, Any]]) -> None:
    """Write the summaries of finished runs, and which others diverged, as JSON and Markdown."""
    write_json(folder / "table.json", {"rows": rows, "over_seeds": over_seeds(rows), "diverged": diverged})
    text = markdown(rows, diverged)
    write_atomically(folder / "table.md", lambda file: file.write(text.encode()))


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """[mean, standard deviation] of each metric, for rows that have several seeds; None where a seed has no value."""
    found = {}
    for name in dict.fromkeys(row["row"] for row in rows):
        of_row = [row for row in rows if row["row"] == name]
        if len(of_row) > 1:
            values = {metric: [row[metric] for row in of_row] for metric in METRICS}
            found[name] = {metric: None if None in of_seeds else [statistics.mean(of_seeds), statistics.stdev(of_seeds)]
                           for metric, of_seeds in values.items()}
    return found


def markdown(rows: list[dict[str, Any]], diverged: list[dict[str, Any]]) -> str:
    head = ("row", "seed", "samples", *(name.upper() for name in METRICS), "MPJPE − full", "rough MPJPE", "rough MPVPE",
            "samples/s", "parameters")
    lines = [_line(head), _line(["---"] * len(head)), *(_line(_cells(row)) for row in rows)]
    for name, spread in over_seeds(rows).items():
        means = ["none" if found is None else f"{found[0]:.2f} ± {found[1]:.2f}" for found in spread.values()]
        lines.append(_line([name, "mean ± deviation", "", *means, *[""] * 5]))
    lines += [_line([run["row"], run["seed"], "diverged", *[""] * 8]) for run in diverged]
    return "\n".join([*lines, "", *_notes(rows)]) + "\n"


def _cells(row: dict[str, Any]) -> list[Any]:
    scores = [_with_interval(row[name], row["interval_95"][name]) for name in METRICS]
    rough = [_number(row["rough"][name]) for name in ("mpjpe", "mpvpe")]
    minus = row["minus_full"]
    change = _with_interval(minus["mpjpe"], minus["interval_95"], "+") if minus else ""
    return [row["row"], row["seed"], row["samples"], *scores, change, *rough, _number(row["samples_per_second"], 0),
            f"{row['parameters'] / 1e6:.2f} M"]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    tested = {json.dumps(row["tested_on"], sort_keys=True): row for row in rows}
    if len(tested) > 1:
        return ["The rows were not tested on the same samples: they cannot be compared."]
    return [f"Millimetres with 95 % intervals over recordings, protocol '{row['protocol']}', "
            f"{row['tested_on']['samples']} samples of {row['tested_on']['name']} {row['tested_on']['split']} in "
            f"`{row['tested_on']['root']}` (names {row['tested_on']['samples_sha256'][:12]}). Predicting the mean pose "
            f"gives an MPJPE of {_number(row['mean_pose'])}." for row in tested.values()]


def _line(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _with_interval(value: float | None, interval: list[float] | None, sign: str = "") -> str:
    bounds = f" [{', '.join(f'{bound:{sign}.2f}' for bound in interval)}]" if interval else ""
    return "none" if value is None else f"{value:{sign}.2f}{bounds}"


def _number(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run_entry_point(main)
