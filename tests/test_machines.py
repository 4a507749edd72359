"""Whole programs in several processes: started by --gpu, by torchrun, by a batch system, on one machine and on two."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from process_group import free_port
from toy_training import plain_trainer

from common.errors import EXIT_ENVIRONMENT
from main.engine.run.snapshots import load_latest, snapshots_in

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "main"
LAUNCHED = [str(ROOT / "tests" / "launched.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def started(*command: object, **environment: object) -> Iterator[subprocess.Popen]:
    """A running command; it is killed if it still runs when the block is left."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    with subprocess.Popen([str(part) for part in command], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
    """How a process of `started` ended: its exit code and what it wrote to stderr."""
    errors = process.communicate(timeout=seconds)[1]
    return process.returncode, errors


def finished(*command: object, **environment: object) -> tuple[int, str]:
    with started(*command, **environment) as process:
        return ended(process)


def wait_for_snapshot(output: Path) -> None:
    deadline = time.monotonic() + 180
    while not snapshots_in(output / "model_dump"):
        assert time.monotonic() < deadline, "no snapshot after three minutes"
        time.sleep(0.05)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def assert_trained_like_one_process(dataset, output: Path, alone: Path) -> None:
    plain_trainer(dataset, alone).fit()
    together, single = (load_latest(folder / "model_dump")[0] for folder in (output, alone))
    assert (together.world_size, together.step) == (2, single.step) == (2, 3)
    torch.testing.assert_close(together.model, single.model, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- as --gpu 0-1 starts them

def test_processes_started_for_two_devices_train_like_one(data_root, dataset, tmp_path):
    assert finished(sys.executable, *LAUNCHED, data_root, tmp_path / "two", 1, "two") == (0, "")
    assert_trained_like_one_process(dataset, tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_of_those_is_named_with_its_signal(data_root, dataset, tmp_path, victim):
    with started(sys.executable, *LAUNCHED, data_root, tmp_path, 100_000, "two") as process:
        wait_for_snapshot(tmp_path)
        os.kill(children(process.pid)[victim], signal.SIGKILL)
        code, errors = ended(process, seconds=10)
    assert code == EXIT_ENVIRONMENT
    assert errors.startswith(f"error: Process {victim} was killed by SIGKILL. Is the memory full?"), errors
    assert errors.count("\n") == 1 and "--continue" in errors


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopping_the_launcher_saves_the_run(data_root, dataset, tmp_path, number, expected):
    with started(sys.executable, *LAUNCHED, data_root, tmp_path, 100_000, "two") as process:
        wait_for_snapshot(tmp_path)
        process.send_signal(number)
        assert ended(process, seconds=20) == (expected, "")
    assert load_latest(tmp_path / "model_dump")[0].step > 3


def test_processes_end_with_their_launcher(data_root, dataset, tmp_path):
    with started(sys.executable, *LAUNCHED, data_root, tmp_path, 100_000, "two") as process:
        wait_for_snapshot(tmp_path)
        workers = children(process.pid)
        process.kill()
        assert len(workers) == 2
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "they go on without it"
            time.sleep(0.05)


# ---------------------------------------------------------------- as torchrun starts them

def test_torchruns_processes_train_test_and_fail_as_one(config_file, tmp_path):
    def run(script: str, *arguments: str) -> tuple[int, str]:
        return finished(*TORCHRUN, "--standalone", "--nproc-per-node=2", MAIN / script, *arguments)

    train = ("--gpu", "cpu", "--config", config_file, "--set", f"output={tmp_path}", "train.batch_size=1",
             "data.workers=1")
    assert run("train.py", *train)[0] == 0
    assert run("test.py", "--test_epoch", "1", "--output", tmp_path)[0] == 0
    together = scores(tmp_path)
    assert together["counts"]["samples"] == 6
    assert_scored_alike(together, scored_alone(tmp_path))
    _, errors = run("train.py", *train)
    assert errors.count("error: ") == 1 and "Use --continue" in errors


def scores(output: Path) -> dict:
    return json.loads((output / "result" / "metrics.json").read_text())


def scored_alone(output: Path) -> dict:
    arguments = ("--test_epoch", "1", "--output", output, "--set", "test.batch_size=4")
    assert finished(sys.executable, MAIN / "test.py", "--gpu", "cpu", *arguments)[0] == 0
    return scores(output)


def assert_scored_alike(together: dict, alone: dict) -> None:
    for name, expected in alone["protocols"].items():
        for metric in ("mpjpe", "mpvpe", "mrrpe", "auc", "mean_scale"):
            # the network itself differs by a rounding of float32 between batches of different sizes
            assert together["protocols"][name][metric] == pytest.approx(expected[metric], abs=1e-3), (name, metric)


def test_torchrun_ends_when_one_of_its_processes_was_killed(data_root, dataset, tmp_path):
    with started(*TORCHRUN, "--standalone", "--nproc-per-node=2", *LAUNCHED, data_root, tmp_path, 100_000) as process:
        wait_for_snapshot(tmp_path)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        code, errors = ended(process, seconds=10)
    assert code == 1        # whatever its processes leave with
    assert errors.count("error: Process 1 on ") == 1 and "--continue" in errors


# ---------------------------------------------------------------- as SLURM starts them

SRUN = """#!/usr/bin/env bash
# Stands for srun: two tasks on this machine, and the highest of their exit codes.
while [[ "$1" == --* ]]; do shift; done
export SLURM_NTASKS=2
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
highest=0
for task in "${tasks[@]}"; do
    while true; do
        wait "$task"; code=$?
        kill -0 "$task" 2>/dev/null || break
    done
    (( code > highest )) && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""


@pytest.fixture
def sbatch(tmp_path, config_file):
    """Start the job script as SLURM would, with stand-ins for srun and scontrol, and with more settings."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*settings: str):
        return started("bash", ROOT / "tool" / "slurm.sbatch", "--gpu", "cpu", "--config", config_file, "--set",
                       "train.batch_size=1", *settings, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                       PYTHON=sys.executable, OUTPUT=tmp_path / "run", SLURM_SUBMIT_DIR=ROOT,
                       SLURM_JOB_ID=free_port(), SLURM_JOB_NODELIST="here", REQUEUED=tmp_path / "requeued")

    return start


def srun_of(job: subprocess.Popen) -> int:
    [srun] = [child for child in children(job.pid) if "srun" in Path(f"/proc/{child}/cmdline").read_text()]
    return srun


def test_a_slurm_job_that_is_stopped_goes_back_into_the_queue_and_then_on(sbatch, tmp_path):
    with sbatch("train.epochs=1000") as job:
        wait_for_snapshot(tmp_path / "run")
        os.kill(srun_of(job), signal.SIGTERM)
        assert ended(job)[0] == 143
    assert (tmp_path / "requeued").read_text().count("\n") == 1
    stopped = load_latest(tmp_path / "run" / "model_dump")[0]
    with sbatch(f"train.epochs={stopped.next_epoch + 2}") as job:
        assert ended(job) == (0, "")
    assert load_latest(tmp_path / "run" / "model_dump")[0].step > stopped.step
    assert (tmp_path / "requeued").read_text().count("\n") == 1


def test_a_slurm_job_whose_process_was_killed_goes_back_and_one_with_a_mistake_does_not(sbatch, tmp_path):
    with sbatch("train.lr=-1") as job:
        assert ended(job)[0] == 2
    assert not (tmp_path / "requeued").exists()
    with sbatch("train.epochs=1000") as job:
        wait_for_snapshot(tmp_path / "run")
        os.kill(children(srun_of(job))[1], signal.SIGKILL)
        code, errors = ended(job, seconds=15)
    assert code == 137 and errors.count("error: Process 1 on ") == 1
    assert (tmp_path / "requeued").exists()


# ---------------------------------------------------------------- on two machines

HOSTS = {"lgnet-a": "10.213.7.1", "lgnet-b": "10.213.7.2"}


def on(host: str, *command: object) -> list[str]:
    """A command as it runs on one of the two machines: its own network and its own name."""
    inside = f"hostname {host} && exec \"$@\""
    return ["ip", "netns", "exec", host, "unshare", "--uts", "bash", "-c", inside, "_", *map(str, command)]


@pytest.fixture(scope="module")
def two_machines() -> Iterator[None]:
    """Two network namespaces with an Ethernet cable between them."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("network namespaces need root, and the commands ip (iproute2) and unshare")
    setup = [f"netns add {host}" for host in HOSTS]
    setup += ["link add eth0 netns lgnet-a type veth peer name eth0 netns lgnet-b"]
    for host, address in HOSTS.items():
        setup += [f"-n {host} addr add {address}/24 dev eth0"]
        setup += [f"-n {host} link set {device} up" for device in ("eth0", "lo")]
    remove_machines()           # of a test run that was killed
    try:
        for host in HOSTS:      # what `ip netns exec` shows as /etc/hosts
            Path("/etc/netns", host).mkdir(parents=True)
            names = "\n".join(f"{address} {name}" for name, address in HOSTS.items())
            Path("/etc/netns", host, "hosts").write_text(f"127.0.0.1 localhost\n{names}\n")
        for line in setup:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be had here: ip {line}: {done.stderr.strip()}")
        yield
    finally:
        remove_machines()


def remove_machines() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "delete", host], capture_output=True)
        shutil.rmtree(Path("/etc/netns", host), ignore_errors=True)


def static(rank: int) -> list[str]:
    return ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", f"--master-addr={HOSTS['lgnet-a']}",
            "--master-port=29500"]


def c10d(rank: int) -> list[str]:
    return ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={HOSTS['lgnet-a']}:29501",
            "--rdzv-id=lgnet", f"--local-addr={list(HOSTS.values())[rank]}"]


def finished_on_both(meeting, *command: object) -> list[tuple[int, str]]:
    with contextlib.ExitStack() as running:
        processes = [running.enter_context(started(*on(host, *TORCHRUN, *meeting(rank), *command),
                                                   GLOO_SOCKET_IFNAME="eth0"))
                     for rank, host in enumerate(HOSTS)]
        return [ended(process) for process in processes]


@pytest.mark.parametrize("meeting", [static, c10d])
def test_two_machines_train_like_one_process(two_machines, data_root, dataset, tmp_path, meeting):
    codes = [code for code, _ in finished_on_both(meeting, *LAUNCHED, data_root, tmp_path / "two", 1)]
    assert codes == [0, 0]
    assert_trained_like_one_process(dataset, tmp_path / "two", tmp_path / "one")


def test_two_machines_train_go_on_and_test_like_one_process(two_machines, config_file, tmp_path):
    train = ("train.py", "--gpu", "cpu", "--config", config_file, "--set", f"output={tmp_path}", "train.batch_size=1")
    for more in (("train.epochs=1",), ("train.epochs=2", "--continue")):
        done = finished_on_both(static, MAIN / train[0], *train[1:], *more)
        assert [code for code, _ in done] == [0, 0], done
    done = finished_on_both(c10d, MAIN / "test.py", "--test_epoch", 1, "--output", tmp_path)
    assert [code for code, _ in done] == [0, 0], done
    together = scores(tmp_path)
    assert together["counts"]["samples"] == 6
    assert_scored_alike(together, scored_alone(tmp_path))


def test_machines_that_do_not_share_the_output_folder_cannot_go_on(two_machines, config_file, tmp_path):
    train = ("train.py", "--gpu", "cpu", "--config", config_file, "--set", "train.batch_size=1")
    assert finished(sys.executable, MAIN / train[0], *train[1:], f"output={tmp_path / 'shared'}")[0] == 0
    # the second machine has an older copy under the same name
    shutil.copytree(tmp_path / "shared", tmp_path / "lgnet-b")
    (tmp_path / "lgnet-b" / "model_dump" / "snapshot_1.pth.tar").unlink()
    shutil.copytree(tmp_path / "shared", tmp_path / "lgnet-a")
    own = f'exec "$0" "$@" --set output={tmp_path}/$(hostname)'
    done = finished_on_both(static, "--no-python", "bash", "-c", own, sys.executable, MAIN / train[0], *train[1:],
                            "train.epochs=3", "--continue")
    told = "".join(errors for _, errors in done)
    assert told.count("error: Process 0 on lgnet-a reads the snapshot snapshot_1.pth.tar") == 1, told
    assert "but process 1 on lgnet-b reads snapshot_0.pth.tar" in told


def test_a_machine_that_vanishes_is_given_up_and_named(two_machines, data_root, dataset, tmp_path):
    group = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": HOSTS["lgnet-a"], "MASTER_PORT": 29502,
             "GLOO_SOCKET_IFNAME": "eth0"}
    with contextlib.ExitStack() as running:
        processes = [running.enter_context(started(*on(host, sys.executable, *LAUNCHED, data_root, tmp_path, 100_000),
                                                   RANK=rank, **group)) for rank, host in enumerate(HOSTS)]
        wait_for_snapshot(tmp_path)
        running.callback(subprocess.run, ["ip", "-n", "lgnet-b", "link", "set", "eth0", "up"], check=True)
        subprocess.run(["ip", "-n", "lgnet-b", "link", "set", "eth0", "down"], check=True)
        (first, told), (second, other) = (ended(process, seconds=45) for process in processes)
    assert (first, second) == (EXIT_ENVIRONMENT, EXIT_ENVIRONMENT), (told, other)
    assert "error: Process 1 on lgnet-b is gone" in told and "error: Process 0 on lgnet-a is gone" in other
