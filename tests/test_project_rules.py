"""Rules that hold for all source files, checked on their syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
            name in ("eval", "exec", "yaml.load", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler")
            or (name == "torch.load" and words.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False")
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


def test_importing_the_packages_pulls_in_nothing_graphical_or_heavy():
    code = (
        "import sys, common.types, common.geometry, common.mano.model, common.score.metrics, data;"
        "bad = {'matplotlib', 'trimesh', 'smplx', 'pycocotools', 'tensorboard', 'torch_geometric'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
