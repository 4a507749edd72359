"""Make one small file of a snapshot's weights, for test.py, demo.py and `model.pretrained`.

    python tool/export_weights.py SNAPSHOT OUT.safetensors [--metrics metrics.json] [--set test.flip_test=true]

The weights are stored in half precision, with the configuration, the hand model and what is known of the training:
the record of the run is looked for where train.py wrote it, in the folder above the snapshot's. `common/weights.py`
describes the file. metrics.json is what test.py wrote for this snapshot. --set says how whoever uses the file does so
unless told otherwise.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

from typing import Any, NamedTuple

from common.errors import EXIT_OK, UserError, run_entry_point
from common.files import ROOT, stored_sha256
from common.score.scores import plain, read_result
from common.weights import VERSION, WEIGHTS_SUFFIX, Metadata, read_weights, write_weights
from main.config import changed_config, config_from_dict, config_to_dict, refuse_changes
from main.engine.run.provenance import portable
from main.engine.run.record import RECORD_FILE, Start, read_record
from main.engine.run.snapshots import Snapshot, load_snapshot
from tool.arguments import export_weights_parser


def main() -> int:
    args = export_weights_parser(__doc__).parse_args()
    if args.out.suffix != WEIGHTS_SUFFIX:
        raise UserError(f"The file to write is {args.out}.", f"Its name must end in {WEIGHTS_SUFFIX}.")
    run = read_run(args.snapshot)
    snapshot = run.snapshot
    stored = config_from_dict(snapshot.config)
    config = changed_config(stored, args.set)
    refuse_changes(stored, config, str(args.snapshot))
    if run.start is None:
        print("There is no record of the run: the file will not tell which data and which program made these weights.")
    metadata = Metadata(
        version=VERSION, config=portable(config_to_dict(config)), hand_model=snapshot.hand_model,
        training=training(run), metrics=args.metrics and measured(args.metrics, run.sha256),
        torch_version=snapshot.torch_version,
    )
    write_weights(args.out, snapshot.model, snapshot.mean_joints, metadata)
    print(f"{args.out}: {sum(value.numel() for value in snapshot.model.values()) / 1e6:.1f} M numbers, "
          f"{args.out.stat().st_size / 1e6:.1f} MB, sha256 {stored_sha256(args.out)}")
    return EXIT_OK


class Run(NamedTuple):
    """A snapshot and where it comes from."""

    snapshot: Snapshot
    sha256: str
    start: Start | None     # of the training that led to it; None if there is no record of the run


def read_run(path: Path) -> Run:
    """A snapshot with the record of its run, which lies in the folder above the snapshot's."""
    snapshot, sha256 = load_snapshot(path)
    output = path.absolute().parent.parent
    entries = read_record(output) if (output / RECORD_FILE).is_file() else []
    starts = [entry for entry in entries if isinstance(entry, Start) and entry.step < snapshot.step]
    return Run(snapshot, sha256, starts[-1] if starts else None)


def training(run: Run) -> dict[str, Any]:
    """How long a snapshot was trained, on what and by which program, and the same of what its run started from."""
    settings, steps = config_from_dict(run.snapshot.config).train, run.snapshot.step
    samples = steps * settings.batch_size * settings.accumulate * run.snapshot.world_size
    return {"epochs": run.snapshot.next_epoch, "steps": steps, "samples": samples, "snapshot_sha256": run.sha256,
            "data": run.start and run.start.data, "program": run.start and run.start.program,
            "start_from": _training_before(settings.start_from)}


def _training_before(start_from: str) -> dict[str, Any] | None:
    path = ROOT / start_from
    if not start_from:
        return None
    if not path.is_file():
        return {"file": portable(start_from)}
    if path.suffix == WEIGHTS_SUFFIX:
        return {"file": portable(start_from)} | read_weights(path).training
    return training(read_run(path))


def measured(path: Path, sha256: str) -> dict[str, Any]:
    """The main numbers of a metrics.json; UserError if it belongs to another snapshot than that with this SHA-256."""
    result = read_result(path)
    if result.checkpoint_sha256 != sha256:
        raise UserError(f"{path} is of another snapshot (sha256 {result.checkpoint_sha256[:12]} instead of "
                        f"{sha256[:12]}).", "Test this snapshot.")
    scores = result.printed
    return {"protocol": result.protocol, "samples": result.counts.samples, "rough": plain(result.rough),
            "baseline": plain(result.baseline), "data": result.data,
            "flip_test": config_from_dict(result.config).test.flip_test, "mpjpe": scores.mpjpe, "mpvpe": scores.mpvpe,
            "mrrpe": scores.mrrpe, "interval_95": scores.interval_95}


if __name__ == "__main__":
    run_entry_point(main)
