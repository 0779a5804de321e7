"""The order of the house: imports only ever point left, imports inside functions included; and the sizes it keeps."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rankwise

SOURCE = Path(rankwise.__file__).parent

# From left to right. A part may import those before it and its own; parts in one row not each other.
ORDER = [
    ["errors", "fake", "controller"],
    ["closure", "distributed", "dropout", "moments", "plain"],
    ["low_rank_op", "part"],
    ["adapter"],
    ["compiling"],
    ["base_layers"],
    ["architectures", "places", "updates"],
    ["targets"],
    ["allocation", "left_out"],
    ["methods"],
    ["surgery"],
    ["merging"],
    ["io", "heads", "hook", "summary"],
    ["adaptation", "planning"],
    ["adapting"],
    ["finished"],
    ["banked"],
    ["bank"],
    [""],  # rankwise/__init__.py: the public names
    ["train"],
    ["compare"],
    ["demo", "report"],
    ["cli"],
    ["__main__"],
]
PLACE = {part: place for place, row in enumerate(ORDER) for part in row}

# The lazy names: users import the callback and the planner from rankwise, which must not load transformers for them.
LAZY = {("", "train.callback"), ("", "planning.plan"), ("", "planning.planner")}

# Parts that are pure: what they may import from outside, the standard library apart.
OUTSIDE = {
    "errors": set(),
    "distributed": {"torch"},
    "dropout": {"torch"},
    "low_rank_op": {"torch"},
    "adapter": {"torch"},
    "controller": {"torch"},
    "architectures": {"torch"},
    "allocation": {"torch"},
    "compiling": {"torch"},
    "part": {"torch"},
    "plain": {"torch"},
    "places": {"torch"},
    "closure": {"torch"},
    "hook": {"torch"},
    "moments": {"torch"},
    "report": {"jinja2", "yaml", "plotly"},
    "merging": {"torch"},
    "surgery": {"torch"},
    "updates": {"torch"},
}


def module_name(path: Path) -> str:
    """Dotted, below rankwise: "io.folder"; "" for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
each_file = pytest.mark.parametrize("module", FILES, ids=lambda module: module or "__init__")


def imported(module: str) -> Iterator[str]:
    """Full names, in the form "rankwise.io.folder" or "torch.nn"; of `from a import b`, b where it is a module."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("rankwise.")
                is_module = node.module.startswith("rankwise") and inner in FILES
                yield f"rankwise.{inner}" if is_module else node.module


def own(module: str) -> set[str]:
    """What it imports of rankwise, below rankwise."""
    names = {n for n in imported(module) if n == "rankwise" or n.startswith("rankwise.")}
    return {n.removeprefix("rankwise").lstrip(".") for n in names}


def part(module: str) -> str:
    return module.partition(".")[0]


@each_file
def test_imports_point_left(module: str):
    assert part(module) in PLACE, f"{module} has no place in the order yet: give it one"
    for other in own(module):
        if (module, other) in LAZY or part(other) == part(module):
            continue
        assert PLACE[part(other)] < PLACE[part(module)], f"{module} imports {other}, which stands to its right"


def test_no_import_goes_in_a_circle():
    graph = {m: {o for o in own(m) if o != m and (m, o) not in LAZY} for m in FILES}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", OUTSIDE)
def test_pure_parts_import_nothing_else(name: str):
    outside = {part(n) for m in FILES if part(m) == name for n in imported(m)} - {"rankwise"}
    assert outside - set(sys.stdlib_module_names) <= OUTSIDE[name]


@pytest.mark.parametrize("module", ["", "methods"])
def test_all_is_what_can_be_imported(module: str):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("rankwise")]
    package = __import__(f"rankwise.{module}".rstrip("."), fromlist=["__all__"])
    public = {alias.asname or alias.name for node in imports for alias in node.names}
    defined = {t.id for n in tree.body if isinstance(n, ast.AnnAssign) for t in [n.target] if isinstance(t, ast.Name)}
    made_elsewhere = {"Method"} if module == "methods" else set()
    assert set(package.__all__) == (public | defined) - made_elsewhere
    assert all(getattr(package, name) is not None for name in package.__all__)


def test_importing_is_light():
    """Importing torch takes seconds; importing rankwise brings none of the packages that take as long again."""
    code = "import torch, sys; before = set(sys.modules); import rankwise; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"accelerate", "datasets", "huggingface_hub", "peft", "rich", "sympy", "transformers", "trl", "numpy"}
    assert not {part(name) for name in loaded} & heavy
    assert "torch._dynamo" not in loaded and "torch.distributed.tensor" not in loaded


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Lora'"):
        _ = rankwise.Lora


# ------------------------------------------------------------------ sizes

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without its docstring."""
    assert function.end_lineno is not None
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function, clean=False) is not None else 0
    return function.end_lineno - function.lineno + 1 - docstring


@each_file
def test_files_and_functions_stay_readable(module: str):
    lines = FILES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{module} has {lines} lines: it is two files"
    long = {f.name: length(f) for f in functions(module) if length(f) > MOST_LINES_OF_A_FUNCTION}
    assert not long, f"{module}: {long}"


@each_file
def test_every_file_says_what_it_is_for(module: str):
    assert ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8")))
