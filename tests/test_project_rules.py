"""Rules that hold for all source files, checked on their syntax trees."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from main.engine.run.provenance import source_files

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(file for folder in ("common", "data", "main", "tool") for file in (ROOT / folder).rglob("*.py"))
UNPICKLER = ROOT / "common" / "mano" / "unpickle.py"  # the one audited place that reads a pickle, by an allow-list


def _calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node


def forbidden_calls(source: str) -> list[str]:
    """Calls that could run code from a data file, as `line: name`."""
    found = []
    for name, words, node in _calls(ast.parse(source)):
        wrong = (
            name in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler")
            or (name == "torch.load" and words.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False")
            or (name == "yaml.load" and words.get("Loader") != "yaml.BaseLoader")       # which makes nothing but text
            or words.get("shell") == "True"
        )
        if wrong:
            found.append(f"{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_data_file_can_run_code(file: Path):
    assert forbidden_calls(file.read_text()) == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_one_file_alone_reads_pickles(file: Path):
    nodes = list(ast.walk(ast.parse(file.read_text())))
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    readers = imported & {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert readers == ({"pickle"} if file == UNPICKLER else set())


@pytest.mark.parametrize("line", [
    "eval('1')", "torch.load('x')", "torch.load('x', weights_only=False)", "np.load('x')",
    "np.load('x', allow_pickle=True)", "yaml.load(text)", "pickle.load(file)", "subprocess.run('ls', shell=True)",
])
def test_the_rule_catches_what_it_forbids(line: str):
    assert forbidden_calls(line)


PROGRAMS = [file for file in SOURCES if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_program_finds_the_repository_before_it_imports_anything_else(file: Path):
    imports = [node for node in ast.parse(file.read_text(encoding="utf-8")).body
               if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"]
    assert ast.unparse(imports[0]) == "import _bootstrap"


def texts_in_the_locale_s_encoding(source: str) -> list[str]:
    """Calls that read or write text in whatever encoding the machine has set, as `line: name`."""
    found = []
    for name, words, node in _calls(ast.parse(source)):
        method, mode = name.split(".")[-1], [*map(ast.unparse, node.args), words.get("mode", "")]
        is_text = method in ("read_text", "write_text") or words.get("text") == "True" or (
            (name == "open" or name.endswith("path.open")) and not any("b'" in word for word in mode))
        if is_text and "encoding" not in words:
            found.append(f"{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_is_read_and_written_alike_under_any_locale(file: Path):
    assert texts_in_the_locale_s_encoding(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ["path.read_text()", "path.write_text('é')", "open('x')", "path.open('w')",
                                  "subprocess.run('ls', text=True)"])
def test_a_text_of_unknown_encoding_is_noticed(line: str):
    assert texts_in_the_locale_s_encoding(line)
    assert not texts_in_the_locale_s_encoding(f"{line[:-1]}{', ' if line[-2] != '(' else ''}encoding='utf-8')")


def test_importing_the_packages_pulls_in_nothing_graphical_or_heavy():
    code = (
        "import sys, common.types, common.geometry, common.mano.model, common.score.metrics, data;"
        "bad = {'matplotlib', 'trimesh', 'smplx', 'pycocotools', 'tensorboard', 'torch_geometric'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_start_imports_a_renderer_a_compiler_or_what_few_runs_need():
    code = ("import sys, main.train, main.test, main.demo;"
            "unwanted = ('data.synthetic.', 'torch._dynamo.', 'torch_geometric.', 'smplx.', 'trimesh.', 'pycocotools');"
            "sys.exit(' '.join(name for name in sys.modules if name.startswith(unwanted)) or 0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "main", env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- floors

FLOORS = ("common", "data", "main", "tool")     # each may import from those before it


def imports(file: Path) -> set[str]:
    """Modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] in FLOORS}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): imports(file) for file in SOURCES}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that reach each other."""
    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    reach = {node: reached(node) for node in graph}
    return [{node, *(other for other in reach[node] if node in reach[other])} for node in graph if node in reach[node]]


@pytest.mark.parametrize("floor", FLOORS[:-1])
def test_no_floor_imports_from_one_above_it(floor: str):
    above = FLOORS[FLOORS.index(floor) + 1:]
    assert {module: sorted(name for name in names if name.split(".")[0] in above)
            for module, names in MODULES.items() if module.split(".")[0] == floor
            if any(name.split(".")[0] in above for name in names)} == {}


def test_no_module_and_no_room_of_common_imports_in_a_circle():
    modules = {module: {name for name in names if name in MODULES} - {module} for module, names in MODULES.items()}
    assert circles(modules) == []

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms: dict[str, set[str]] = {}
    for module, names in modules.items():
        if module.startswith("common."):
            rooms.setdefault(room(module), set()).update({room(name) for name in names} - {room(module), "common"})
    assert circles(rooms) == []


def test_a_circle_is_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}] * 3


def test_every_file_of_the_program_counts_in_the_hash_of_its_sources():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("no git checkout")
    program = {ROOT / file for file in tracked if file.split("/")[0] in FLOORS}
    assert program - set(source_files(ROOT)) == set()
