"""Imports point down only, imports are lazy, and no module hides a public function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import likely
from likely import arguments

SOURCE = Path(likely.__file__).parent

# From the bottom up; a module may import from layers below its own, and from its own package.
LAYERS = [
    ["errors", "names", "logprob", "noise", "support", "relaxation", "pointsets", "space", "__init__"],
    ["dataset"],
    ["model"],
    ["abilities", "distribution"],
    ["heads", "nets", "bijections", "solve", "coding", "decoding"],
    ["stepwise", "dynamic", "completion", "own_order", "dequantization"],
    ["ancestral", "invertible"],
    ["probability_flow"],
    ["denoising"],
    ["partly_known"],
    ["coded_chain"],
    ["variational_bound"],
    ["families"],
    ["store", "sources"],
    ["training", "train", "target"],
    ["evaluation"],
    ["enumeration"],
    ["laws"],
    ["checks", "worker", "launch", "board", "report"],
    ["inputs", "verbs", "filling", "latents", "tracing", "varying", "health"],
    ["arguments", "printing", "cli", "__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path):
    """The top-level part of the package that a file belongs to."""
    inner = path.relative_to(SOURCE)
    return inner.parts[0] if len(inner.parts) > 1 else inner.stem


def imported_parts(path):
    """Parts of likely that a file imports at run time, wherever in the file; type-checking imports are left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "likely":
            yield from (alias.name for alias in node.names if alias.name in RANK)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("likely."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("likely."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    mine = part_of(path)
    assert mine in RANK, f"{mine} has no layer"
    above = [other for other in imported_parts(path) if other != mine and RANK[other] > RANK[mine]]
    assert not above, f"{path.name} imports {above} from above its layer"


@pytest.mark.parametrize("path", sorted((SOURCE / "families").glob("*.py")), ids=lambda p: p.stem)
def test_families_do_not_import_each_other(path):
    tree = ast.parse(path.read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith("likely.families")]
    assert not names


def test_arguments_lists_what_the_command_line_takes_from_it():
    tree = ast.parse((SOURCE / "cli.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "likely.arguments"]
    assert {alias.name for node in nodes for alias in node.names} <= set(arguments.__all__)


def test_nothing_above_names_a_family():
    families = {"Histogram", "Autoregressive", "VAE", "GAN", "Energy", "Diffusion", "KernelDensity", "ProbabilisticPCA"}
    above = [path for path in FILES if part_of(path) not in ("families", "nets", "bijections", "solve", "coding", "heads")]
    names = {
        str(path.relative_to(SOURCE)): {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)} for path in above
    }
    assert {where: found & families for where, found in names.items() if found & families} == {}


def test_accelerate_is_imported_in_one_place():
    users = {path.name for path in FILES if "accelerate" in {n.split(".")[0] for n in _imports(path)}}
    assert users == {"train.py"}


def test_torchvision_is_never_imported():
    assert not [path for path in FILES if "torchvision" in {n.split(".")[0] for n in _imports(path)}]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def _modules_after(code):
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_likely_does_not_import_torch():
    assert not {"torch", "numpy", "sklearn", "polars"} & _modules_after("import likely")


def test_the_command_lines_help_does_not_import_torch():
    code = "import sys; sys.argv = ['likely', '--help']\nfrom likely.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
    assert not {"torch", "numpy", "sklearn", "polars"} & _modules_after(f"exec({code!r})")


def test_no_module_has_the_name_of_a_public_function():
    modules = {part_of(path) for path in FILES}
    assert not modules & set(likely.__all__)
    assert len(likely.__all__) <= 26


def test_every_public_name_exists_twice_in_a_row():
    for _ in range(2):
        for name in likely.__all__:
            assert getattr(likely, name) is not None
