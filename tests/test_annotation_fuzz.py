"""300 damaged annotation files, 30 for each of ten damages: each is read right, or refused by one error that names the
file and the key.

"Right" is judged by `plain_frame`, which reads the same files with json and dictionaries.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fixtures_interhand import CAMERAS, STEPS, write_interhand

from common.errors import UserError
from common.hands import INTERHAND21, MANO21, MIDDLE_MCP, WRIST, Hand
from data.InterHand26M.reader import InterHand26M

CASES = 30                  # of each of ten damages
KINDS = ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
WRONG = [None, "x", "", -1, 0, 1.5, True, 10**25, 1e300, -1e300, [], {}, [[]], {"x": 1}, [1, 2, 3]]
NUM_USABLE = (len(STEPS) - 1) * len(CAMERAS)     # one time step annotates nothing
HUGE = "[" * 1_000_000 + "]" * 1_000_000


@pytest.fixture(scope="module")
def written(tmp_path_factory, hand_model):
    return write_interhand(tmp_path_factory.mktemp("interhand"), hand_model)


class Case(NamedTuple):
    """A damaged file."""

    text: str | bytes
    keys: tuple = ()            # where a value was changed; empty if the whole file was
    must_read: bool = False     # nothing was lost


def places(content: Any, place: tuple = ()) -> list[tuple]:
    """Paths to the values of nested lists and dictionaries."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place, *(deeper for key, value in items for deeper in places(value, (*place, key)))]


def at(content: Any, place: tuple) -> Any:
    for key in place:
        content = content[key]
    return content


def draw_place(rng: np.random.Generator, content: Any, wanted: type | tuple = object) -> tuple | None:
    """A place whose value is of a type; all depths are equally likely, or leaves would be nearly all of them."""
    by_depth: dict[int, list[tuple]] = {}
    for place in places(content)[1:]:
        if isinstance(at(content, place), wanted):
            by_depth.setdefault(len(place), []).append(place)
    if not by_depth:
        return None
    chosen = by_depth[sorted(by_depth)[rng.integers(len(by_depth))]]
    return chosen[rng.integers(len(chosen))]


# ---------------------------------------------------------------- ways to damage a file

def delete(rng, content) -> Case:
    place = draw_place(rng, content)
    parent = at(content, place[:-1])
    del parent[place[-1]]
    return Case(json.dumps(content), place)


def retype(rng, content) -> Case:
    place = draw_place(rng, content)
    at(content, place[:-1])[place[-1]] = WRONG[rng.integers(len(WRONG))]
    return Case(json.dumps(content), place)


def resize(rng, content) -> Case:
    place = draw_place(rng, content, list)
    if place is None:
        return retype(rng, content)
    values = at(content, place)
    if values and rng.random() < 0.5:
        values.pop(rng.integers(len(values)))
    else:
        values.append(values[0] if values else 1)
    return Case(json.dumps(content), place)


def reorder(rng, content) -> Case:
    """Keys in another order, and lists of entries too: nothing is said by their order."""
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in rng.permutation(list(value)).tolist()}

    content = shuffled(content)
    for name in ("images", "annotations"):
        if name in content:
            rng.shuffle(content[name])
            content[name] = [shuffled(entry) for entry in content[name]]
    return Case(json.dumps(content), must_read=True)


def add_keys(rng, content) -> Case:
    """Keys that nobody asked for, beside those that are known by name."""
    place = draw_place(rng, content, dict)
    if place is not None and not str(place[-1]).isdigit():
        place = place[:-1]
    entry = at(content, place or ())
    if isinstance(entry, dict) and not any(str(key).isdigit() for key in entry):
        entry["comment"] = ["x", {"y": None}]
    return Case(json.dumps(content, indent=int(rng.integers(4))), must_read=True)


def literal(rng, content) -> Case:
    """Numbers that json.dumps does not write, or that no number can hold."""
    place = draw_place(rng, content, (int, float))
    at(content, place[:-1])[place[-1]] = "PLACE"
    value = ["NaN", "Infinity", "1e999", "-1e999", "0x10", "01", "1.", "--1", "9" * 400][rng.integers(9)]
    return Case(json.dumps(content).replace('"PLACE"', value), place)


def nest(rng, content) -> Case:
    place = draw_place(rng, content)
    at(content, place[:-1])[place[-1]] = "PLACE"
    return Case(json.dumps(content).replace('"PLACE"', HUGE))


def repeat_id(rng, content) -> Case:
    """Two entries with one id. Files without ids get keys twice: of equal keys in an object the last one counts."""
    if "images" not in content:
        return Case(twice(content, rng), must_read=True)
    name = ("images", "annotations")[rng.integers(2)]
    first, second = rng.choice(len(content[name]), 2, replace=False).tolist()
    content[name][second]["id"] = content[name][first]["id"]
    return Case(json.dumps(content), (name, second, "id"))


def twice(value: Any, rng: np.random.Generator) -> str:
    """JSON in which some objects say everything twice; what is overruled is what another entry says."""
    if not isinstance(value, dict):
        return json.dumps(value)
    items = [(json.dumps(key), twice(item, rng)) for key, item in value.items()]
    if rng.random() < 0.3 and all(key[1:-1].isdigit() for key, _ in items):
        items = [(key, items[0][1]) for key, _ in items] + items
    return "{" + ", ".join(f"{key}: {item}" for key, item in items) + "}"


def truncate(rng, content) -> Case:
    text = json.dumps(content)
    return Case(text[:rng.integers(len(text))])


def garble(rng, content) -> Case:
    """Other roots and encodings, and bytes that are none."""
    text = json.dumps(content)
    cut = int(rng.integers(len(text)))
    return Case([
        b"", b"null", b"[]", b"{}", b'"x"', b"3", text.encode("utf-16"), b"\xff" + text.encode(), text + "}", text * 2,
        text[:cut] + "\x00" + text[cut:], text[:cut] + "\\" + text[cut:], text[:cut].encode() + b"\xc3\x28",
        text.replace(":", " "), text.replace('"', "'"), "<html>Not found</html>", bytes(rng.bytes(500)),
    ][rng.integers(17)])


DAMAGES = (delete, retype, resize, reorder, add_keys, literal, nest, repeat_id, truncate, garble)


# ---------------------------------------------------------------- the other way to read

class Frame(NamedTuple):
    size: tuple[int, int]
    intrinsics: np.ndarray
    joints: np.ndarray          # (2, 21, 3) camera frame, metres
    valid: np.ndarray           # (2, 21)
    bones: np.ndarray           # (2,) metres, wrist to middle knuckle
    has_fit: np.ndarray         # (2,)


def plain_frame(content: dict[str, Any], annotation: dict[str, Any]) -> Frame:
    """What the files say about an annotation."""
    image = {image["id"]: image for image in content["data"]["images"]}[annotation["image_id"]]
    capture, frame, camera = str(image["capture"]), str(image["frame_idx"]), str(image["camera"])
    about = content["camera"][capture]
    position, rotation, focal, center = (np.array(about[key][camera]) for key in
                                         ("campos", "camrot", "focal", "princpt"))
    order = [INTERHAND21.names.index(name) for name in MANO21.names]
    joints, valid, bones = np.zeros((2, 21, 3)), np.zeros((2, 21), dtype=bool), np.full(2, 0.1)
    entry = (content["joint_3d"].get(capture) or {}).get(frame)
    if entry:
        valid = plain_flags(entry)[:, order] & plain_flags(annotation)[:, order]
        valid[~valid[:, WRIST]] = False
        world = np.array(entry["world_coord"], dtype=float).reshape(2, 21, 3)[:, order] / 1000
        joints = (world - np.array(position) / 1000) @ rotation.T
        bones = np.linalg.norm(world[:, MIDDLE_MCP] - world[:, WRIST], axis=1)
    fits = (content["MANO_NeuralAnnot"].get(capture) or {}).get(frame) or {}
    return Frame((image["width"], image["height"]),
                 np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]]), joints, valid, bones,
                 np.array([fits.get(hand.label) is not None for hand in Hand]))


def plain_flags(entry: dict[str, Any]) -> np.ndarray:
    flags = [flag[0] if isinstance(flag, list) else flag for flag in entry["joint_valid"]]
    return np.array(flags, dtype=bool).reshape(2, 21)


def check_against_plain(reader: InterHand26M, content: dict[str, Any], rng: np.random.Generator) -> None:
    annotations = {annotation["id"]: annotation for annotation in content["data"]["annotations"]}
    for index in rng.choice(len(reader), min(5, len(reader)), replace=False).tolist():
        about = reader.describe(index)
        annotation = annotations[about["annotation_id"]]
        with np.errstate(all="ignore"):     # of numbers near the largest there are
            record, frame = reader.read(index), plain_frame(content, annotation)
        valid = frame.valid
        assert (record.image_size, about["hand_type"]) == (frame.size, annotation["hand_type"])
        np.testing.assert_allclose(record.camera, frame.intrinsics)
        np.testing.assert_array_equal(record.joints_annotated_valid, valid)
        np.testing.assert_array_equal(record.mano_valid, frame.has_fit)
        np.testing.assert_allclose(record.joints_annotated_cam[valid], frame.joints[valid], rtol=1e-9, atol=1e-9)
        # What no reader should let through, whatever the files say.
        bones = frame.bones[valid[:, MIDDLE_MCP]]
        assert ((bones >= 0.01) & (bones <= 0.2)).all() and record.camera[[0, 1], [0, 1]].min() > 0
        assert record.joints_annotated_cam[valid][:, 2].min(initial=1) > 0


# ---------------------------------------------------------------- the promise

def names_the_place(text: str, case: Case, path: Path) -> bool:
    """Whether an error tells where to look: the file, and a key on the way to what was changed."""
    if "No annotation can be used" in text or "which does not exist" in text:
        return True                         # the summary of what was left out; the picture that is not there
    names = [key for key in case.keys if isinstance(key, str)]
    is_named = not names or any(name in text for name in names) or "there is no image with the id" in text
    return str(path) in text and is_named


@pytest.mark.scorecard("fuzzed annotations")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_read_right_or_refused_by_file_and_key(damage, written, tmp_path, hand_model,
                                                                  record_property):
    originals = {kind: (written.root / f"annotations/train/InterHand2.6M_train_{kind}.json").read_text()
                 for kind in KINDS}
    root = Path(shutil.copytree(written.root, tmp_path / "set"))
    for number in range(CASES):
        rng, kind = np.random.default_rng((DAMAGES.index(damage), number)), KINDS[number % 4]
        case = damage(rng, json.loads(originals[kind]))
        path = root / f"annotations/train/InterHand2.6M_train_{kind}.json"
        path.write_bytes(case.text if isinstance(case.text, bytes) else case.text.encode())
        try:
            reader = InterHand26M(root, "train", hand_model, "all")
        except UserError as error:
            text = str(error)
            told = f"case {number} in {kind}, at {case.keys}: {text}"
            assert names_the_place(text, case, path) and "\n" not in text and len(text) < 2000, told
            assert not case.must_read, told
        else:
            assert len(reader) == NUM_USABLE or not case.must_read
            contents = {name: json.loads(text) for name, text in originals.items()}
            check_against_plain(reader, {**contents, kind: json.loads(case.text, strict=False)}, rng)
        path.write_text(originals[kind])
    record_property("cases", CASES)
