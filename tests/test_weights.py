"""Trained weights as one file: what comes out is what went in, in half precision, or one paragraph says why not."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import random
import struct
import sys
from pathlib import Path

import msgspec
import pytest
import safetensors
import safetensors.torch
import torch
from hostile_pickles import running_pickles
from tiny_snapshot import save_tiny_snapshot
from toy_scores import plain_result

import common.weights
from common.errors import UserError
from common.nets.pretrained import load_pretrained
from common.nets.resnet import ResNet
from common.nets.zoo import build_model
from common.weights import SHIPPED, VERSION, Metadata, read_weights, write_weights
from main.config import config_from_dict
from main.engine.run.record import Start
from main.engine.run.snapshots import load_snapshot, save_snapshot
from main.network import load_network
from tool import export_weights

CPU = torch.device("cpu")
METADATA = Metadata(version=VERSION, config={"output": "output"}, hand_model={"name": "builtin", "sha256": "0" * 64},
              training={"epochs": 1}, metrics=None, torch_version="any")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, hand_model) -> Path:
    path = tmp_path_factory.mktemp("run") / "model_dump" / "snapshot_0.pth.tar"
    save_tiny_snapshot(path, hand_model)
    return path


@pytest.fixture(scope="module")
def exported(snapshot, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export_weights.py", str(snapshot), str(path)])
        assert export_weights.main() == 0
    return path


@pytest.fixture
def small(tmp_path) -> Path:
    """A file of few numbers, in all else like any other."""
    torch.manual_seed(0)
    write_weights(tmp_path / "small.safetensors", {"a.weight": torch.randn(8, 8), "a.count": torch.tensor(3)},
                  torch.zeros(2, 21, 3), METADATA)
    return tmp_path / "small.safetensors"


def sign(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- there and back

def test_a_file_predicts_what_the_snapshot_in_half_precision_predicts(snapshot, exported, hand_model):
    stored, _ = load_snapshot(snapshot)
    config = config_from_dict(stored.config)
    model = build_model(config.model, hand_model).eval()
    rounded = {name: value.half().float() if value.dtype == torch.float32 else value
               for name, value in stored.model.items()}
    model.load_state_dict(rounded)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(image), load_network(exported, [], CPU).predictor.model(image)
    torch.testing.assert_close(found.final.vertices, expected.final.vertices, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.final.camera, expected.final.camera, rtol=1e-4, atol=1e-5)


def test_a_file_is_half_precision_that_any_reader_of_the_format_understands(snapshot, exported):
    stored, sha256 = load_snapshot(snapshot)
    tensors = safetensors.torch.load_file(exported)
    assert tensors.keys() - {"mean_joints"} == stored.model.keys()
    floats = [name for name, value in stored.model.items() if value.is_floating_point()]
    assert all(tensors[name].dtype == torch.float16 for name in floats)
    assert exported.stat().st_size < 0.55 * sum(value.nbytes for value in stored.model.values())
    with safetensors.safe_open(exported, framework="np") as file:
        facts = json.loads(file.metadata()["lgnet"])
    assert facts["version"] == 1 and facts["hand_model"] == stored.hand_model
    assert config_from_dict(facts["config"]) == config_from_dict(stored.config)
    assert facts["training"]["snapshot_sha256"] == sha256 and facts["training"]["data"] is None


def test_the_same_snapshot_gives_the_same_bytes(run, snapshot, exported, tmp_path):
    assert run("tool/export_weights.py", snapshot, tmp_path / "again.safetensors")[0] == 0
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()


def test_the_digest_beside_a_file_is_one_that_sha256sum_reads(small):
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert small.with_name("small.safetensors.sha256").read_text() == f"{digest}  small.safetensors\n"
    assert read_weights(small).sha256 == digest


def start(step: int, data: dict) -> Start:
    return Start(time="", continues=step > 0, epoch=0, step=step, folder=".", command=[], config={},
                 program={"commit": f"at {step}"}, versions={}, machine={}, data=data, hand_model={}, pretrained=None,
                 changed={})


def test_a_file_tells_how_its_weights_were_trained_and_measured(run, snapshot, tmp_path):
    """The run's record has a start before and one after the snapshot; batches of 32, 7 steps, 2 processes."""
    path = tmp_path / "model_dump" / "snapshot_0.pth.tar"
    save_snapshot(dataclasses.replace(load_snapshot(snapshot)[0], model={}, step=7, world_size=2), path)
    record = [start(0, {"samples": 80}), start(7, {"samples": 90})]
    (tmp_path / "run.jsonl").write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in record))
    sha256 = load_snapshot(path)[1]
    metrics = plain_result(12.5, checkpoint_sha256=sha256, config={"test": {"flip_test": True}})
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))

    words = ("tool/export_weights.py", path, tmp_path / "w.safetensors", "--metrics", tmp_path / "metrics.json")
    assert run(*words, "--set", "test.flip_test=true")[0] == 0
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="np") as file:
        facts = json.loads(file.metadata()["lgnet"])
    assert facts["training"] == {"epochs": 1, "steps": 7, "samples": 448, "snapshot_sha256": sha256,
                                 "data": {"samples": 80}, "program": {"commit": "at 0"}, "start_from": None}
    measured = read_weights(tmp_path / "w.safetensors").metrics
    assert (measured["mpjpe"], measured["flip_test"], facts["config"]["test"]["flip_test"]) == (12.5, True, True)

    code, text = run(*words, "--set", "model.channels=32")
    assert code == 2 and "fixes the model, but the configuration differs: model.channels 16" in text
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"checkpoint_sha256": "f" * 64}))
    code, text = run(*words)
    assert code == 2 and "is of another snapshot (sha256 ffffffffffff" in text


def test_a_file_tells_what_the_training_before_its_own_was(snapshot, tmp_path):
    """Two trainings one after the other, the first of them started from a file that is gone."""
    stored, _ = load_snapshot(snapshot)
    first, second = (tmp_path / name / "model_dump" / "snapshot_0.pth.tar" for name in ("first", "second"))
    for path, steps, before in ((first, 5, "gone.safetensors"), (second, 3, str(first))):
        config = stored.config | {"train": stored.config["train"] | {"start_from": before}}
        save_snapshot(dataclasses.replace(stored, model={}, step=steps, config=config), path)
    found = export_weights.training(export_weights.read_run(second))
    assert (found["steps"], found["samples"]) == (3, 96)
    assert (found["start_from"]["steps"], found["start_from"]["start_from"]) == (5, {"file": "gone.safetensors"})


def test_a_file_tells_how_the_weights_were_trained_that_its_own_training_started_from(snapshot, small, tmp_path):
    stored, _ = load_snapshot(snapshot)
    path = tmp_path / "run" / "model_dump" / "snapshot_0.pth.tar"
    config = stored.config | {"train": stored.config["train"] | {"start_from": str(small)}}
    save_snapshot(dataclasses.replace(stored, model={}, config=config), path)
    assert export_weights.training(export_weights.read_run(path))["start_from"] == {"file": str(small), "epochs": 1}


def test_numbers_too_large_for_half_precision_are_not_written(tmp_path):
    with pytest.raises(UserError, match="do not fit into half precision, the first is 'a.weight'"):
        write_weights(tmp_path / "x.safetensors", {"a.weight": torch.tensor([70_000.0])}, torch.zeros(2, 21, 3),
                      METADATA)
    assert not list(tmp_path.iterdir())


def test_a_name_that_no_reader_takes_for_weights_is_refused(run, snapshot, tmp_path):
    code, text = run("tool/export_weights.py", snapshot, tmp_path / "weights.pth")
    assert code == 2 and "must end in .safetensors" in text


# ---------------------------------------------------------------- damage

def test_no_flipped_bit_and_no_truncation_goes_unnoticed(small):
    data, rng = small.read_bytes(), random.Random(0)
    for place in rng.sample(range(8 * len(data)), 100):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        small.write_bytes(damaged)
        assert "is damaged (sha256" in refusal(small)
    for length in (0, 1, 8, 9, len(data) // 2, len(data) - 1):
        small.write_bytes(data[:length])
        assert "is damaged (sha256" in refusal(small)


def test_a_file_without_its_digest_is_refused(small):
    small.with_name("small.safetensors.sha256").unlink()
    assert "small.safetensors.sha256, which is written last, is missing" in refusal(small)


def test_damage_that_was_signed_gives_numbers_or_a_refusal(small):
    """Whoever can write the file can write its digest: it guards against accidents, the reader against the rest."""
    data, rng = small.read_bytes(), random.Random(1)
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.sample(range(len(data) // 2), 3):
            damaged[place] = rng.randrange(256)
        small.write_bytes(damaged[:rng.choice((len(data), rng.randrange(len(data))))])
        sign(small)
        with contextlib.suppress(UserError):
            read_weights(small)


def with_header(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def facts_text(**changes: object) -> str:
    return json.dumps(msgspec.to_builtins(METADATA) | changes)


def stored(metadata: dict[str, str] | None, **tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save({"mean_joints": torch.zeros(2, 21, 3)} | tensors, metadata)


BAD = {
    "a header of 16 exabytes": (with_header(b"{}", (1 << 64) - 1), "its header claims 18446744073709551615 bytes"),
    "a header of a terabyte": (with_header(b"{}", 1 << 40), "its header claims 1099511627776 bytes"),
    "a header longer than the file": (with_header(b"{}", 1000), "header"),
    "an empty header": (with_header(b""), "header"),
    "a large header": (with_header(b" " * (2 << 20)), "its header claims 2097152 bytes"),
    "a deep header": (with_header(b'{"a":' * 20_000), "header"),
    "numbers that are not there": (with_header(json.dumps(
        {"a": {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 1 << 41]}}).encode()), "header"),
    "offsets of another shape": (with_header(json.dumps(
        {"a": {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 2]}}).encode()) + b"xx", "header"),
    "weights of another program": (stored(None), "truncated"),
    "facts that are not JSON": (stored({"lgnet": "x"}), "malformed"),
    "facts without end": (stored({"lgnet": '{"version": 1, "config": ' + '{"a": ' * 100_000}), "recursion"),
    "another version": (stored({"lgnet": json.dumps({"version": 2, "more": 1})}), "version 2 instead of 1"),
    "a missing fact": (stored({"lgnet": json.dumps({"version": 1})}), "missing required field `config`"),
    "a fact of another kind": (stored({"lgnet": facts_text(config=3)}), "Expected `object`, got `int`"),
    "an unknown fact": (stored({"lgnet": facts_text(more=3)}), "unknown field `more`"),
    "numbers of eight bits": (stored({"lgnet": facts_text()}, a=torch.zeros(1).to(torch.float8_e5m2)),
                              "numbers of the type torch.float8_e5m2"),
    "no mean joints": (safetensors.torch.save({"a": torch.zeros(1)}, {"lgnet": facts_text()}), "'mean_joints' has"),
    "other mean joints": (stored({"lgnet": facts_text()}, mean_joints=torch.zeros(21, 3)), "'mean_joints' has"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_file_of_weights_is_refused_with_its_reason(tmp_path, kind):
    content, reason = BAD[kind]
    (tmp_path / "bad.safetensors").write_bytes(content)
    sign(tmp_path / "bad.safetensors")
    assert reason in refusal(tmp_path / "bad.safetensors")


def test_no_file_of_weights_can_run_code(tmp_path):
    sentinel, file = tmp_path / "sentinel", tmp_path / "bad.safetensors"
    for content in running_pickles(sentinel).values():
        file.write_bytes(content)
        sign(file)
        refusal(file)
    torch.save({"run": print}, file)
    sign(file)
    refusal(file)
    assert not sentinel.exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "There is no file of weights" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize(("change", "reason"), [
    (lambda tensors: tensors.pop("backbone.conv1.weight"), "1 missing: backbone.conv1.weight"),
    (lambda tensors: tensors.update({"more.weight": torch.zeros(3)}), "1 unexpected: more.weight"),
    (lambda tensors: tensors.update({"backbone.conv1.weight": torch.zeros(3)}), "1 of another shape: backbone.conv1"),
    (lambda tensors: tensors["backbone.conv1.weight"].fill_(torch.nan), "1 not finite: backbone.conv1.weight"),
])
def test_tensors_of_another_network_are_refused(exported, tmp_path, change, reason):
    found = read_weights(exported)
    with safetensors.safe_open(exported, framework="np") as file:
        facts = msgspec.json.decode(file.metadata()["lgnet"], type=Metadata)
    tensors = found.model
    change(tensors)
    write_weights(tmp_path / "other.safetensors", tensors, found.mean_joints, facts)
    with pytest.raises(UserError, match=reason) as caught:
        load_network(tmp_path / "other.safetensors", [], CPU)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("tensor", ["backbone.conv1.weight", "backbone.bn1.running_var", "mean_joints"])
def test_a_single_number_that_is_not_finite_is_refused_at_every_door(run, exported, config_file, tmp_path, tensor):
    """The file is whole otherwise, and its digest is of what it holds."""
    tensors = safetensors.torch.load_file(exported)
    tensors[tensor].flatten()[-1] = torch.nan
    with safetensors.safe_open(exported, framework="pt") as opened:
        metadata = opened.metadata()
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, file, metadata)
    sign(file)
    train = ("train.py", "--gpu", "cpu", "--config", config_file, "--set", f"output={tmp_path / 'run'}")
    for command in [
        ("test.py", "--gpu", "cpu", "--checkpoint", file, "--output", tmp_path),
        ("demo.py", "--gpu", "cpu", "--checkpoint", file, "--output", tmp_path / "demo",
         "--input", SHIPPED.parent / "examples"),
        (*train, f"train.start_from={file}"), (*train, f"model.pretrained={file}"),
    ]:
        code, text = run(*command)
        assert code == 2 and text.count("error: ") == 1 and "not finite" in text and tensor.split(".")[-1] in text
    assert not (tmp_path / "run" / "model_dump").exists()


# ---------------------------------------------------------------- where weights are used

def test_a_backbone_starts_from_a_file_of_weights(snapshot, exported):
    weights = load_snapshot(snapshot)[0].model
    net = ResNet("resnet18")
    load_pretrained(net, str(exported))
    for name, value in net.state_dict().items():
        expected = weights[f"backbone.{name}"]
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected), name


def test_weights_of_another_backbone_are_refused(exported):
    with pytest.raises(UserError, match="does not hold weights of resnet34"):
        load_pretrained(ResNet("resnet34"), str(exported))


def test_training_does_not_continue_from_weights_alone(run, exported, config_file, tmp_path):
    (tmp_path / "model_dump").mkdir()
    (tmp_path / "model_dump" / exported.name).symlink_to(exported)
    with pytest.raises(UserError, match="holds weights alone, without the optimiser"):
        load_snapshot(exported)
    code, text = run("train.py", "--gpu", "cpu", "--config", config_file, "--continue", "--set", f"output={tmp_path}")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "train.start_from=" in errors[0]


def test_a_file_and_its_snapshot_are_tested_alike(run, snapshot, exported, config_file, tmp_path):
    changes = [f"data.root={config_file.parent / 'data'}", "data.workers=0"]
    found = {}
    for file in (exported, snapshot):
        output = tmp_path / file.suffix
        code, _ = run("test.py", "--gpu", "cpu", "--checkpoint", file, "--output", output, "--set", *changes)
        found[file] = json.loads((output / "result" / "metrics.json").read_text())
        assert (code, found[file]["checkpoint"], found[file]["epoch"]) == (0, file.name, None)
    assert found[exported]["checkpoint_sha256"] == read_weights(exported).sha256
    expected = found[snapshot]["protocols"]["lgnet"]["mpjpe"]
    assert found[exported]["protocols"]["lgnet"]["mpjpe"] == pytest.approx(expected, rel=1e-3)


def test_the_demo_uses_the_weights_of_the_repository_unless_told_otherwise(run, exported, config_file, tmp_path,
                                                                         monkeypatch):
    picture = next((config_file.parent / "data" / "images").rglob("*.jpg"))
    monkeypatch.setattr(common.weights, "SHIPPED", exported)
    code, text = run("demo.py", "--gpu", "cpu", "--input", picture, "--output", tmp_path / "out")
    assert code == 0
    assert text.splitlines()[0] == "Weights: tiny.safetensors (not measured), trained on rendered hands only."
    params = json.loads(next((tmp_path / "out" / "params").glob("*_left.json")).read_text())
    assert params["checkpoint_sha256"] == read_weights(exported).sha256

    monkeypatch.setattr(common.weights, "SHIPPED", tmp_path / "none.safetensors")
    code, text = run("demo.py", "--gpu", "cpu", "--input", picture, "--output", tmp_path / "other")
    assert code == 2 and "There is no file of weights" in text


def test_the_demo_tells_what_was_measured_of_them(monkeypatch):
    introduction = importlib.import_module("main.demo").introduction
    line = introduction({"mpjpe": 12.346, "samples": 900, "protocol": "lgnet", "flip_test": True})
    assert line == (f"Weights: {SHIPPED.name} (MPJPE 12.35 mm on 900 rendered test samples, protocol 'lgnet', flip "
                    "test), trained on rendered hands only.")


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no weights come with this state of the repository")
def test_the_weights_of_the_repository_are_small_measured_and_of_its_own_rendered_hands(hand_model):
    trained = load_network(SHIPPED, [], CPU).trained
    with safetensors.safe_open(SHIPPED, framework="np") as file:
        facts = json.loads(file.metadata()["lgnet"])
    assert SHIPPED.stat().st_size <= 40_000_000
    assert trained.hand_model == hand_model.identity and facts["training"]["data"]["rendered"]
    assert trained.metrics["mpjpe"] < trained.metrics["baseline"]["mean_pose"]["mpjpe"]
    assert str(Path.home()) not in json.dumps(facts)
