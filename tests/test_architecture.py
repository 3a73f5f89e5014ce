"""Imports follow one table, from the top down.

A room is a file or a folder of src/featurepress. The table lists the rooms that each room may import; rooms import
only those below them. Reading from the top, stop at any line: everything below has a contract.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "featurepress"

ARROWS = """
    __init__    -> fp.models learning runs features analysis engines progress errors _version
    __main__    -> cli
    testing     -> everything
    fp.models   -> runs embedding models
    cli         -> fp.models learning runs features analysis engines models demo ledger storage progress \
                   specs settings errors _version
    spark       -> runs embedding models storage specs settings errors
    sklearn     -> runs embedding models specs settings errors
    learning    -> runs reports embedding analysis features engines images sources ledger models storage progress \
                   process specs settings errors _version
    runs        -> embedding engines features ledger sources models demo storage progress specs settings errors \
                   process _version
    reports     -> analysis features specs errors
    analysis    -> features ledger process specs settings errors
    embedding   -> sources images models ledger storage progress process specs settings errors
    features    -> ledger storage progress process specs settings errors
    engines     -> ledger process errors _version
    sources     -> ledger storage specs settings errors
    images      -> specs errors
    models      -> ledger storage progress process specs settings errors
    ledger      -> storage process specs settings errors
    storage     -> errors
    settings    -> errors
    specs       -> errors
    demo        -> errors
    progress    ->
    process     ->
    errors      ->
    _version    ->
"""

# Libraries that are slow to import or that only one room should know: the rooms that may use them.
LIBRARIES = {
    "openvino": {"models"},
    "keras": {"models"},
    "requests": {"models"},
    "platformdirs": {"models"},
    "cv2": {"images", "demo"},
    "PIL": {"images", "models", "demo", "reports"},
    "numpy": {
        "images",
        "models",
        "analysis",
        "learning",
        "embedding",
        "runs",
        "reports",
        "features",
        "spark",
        "sklearn",
        "specs",
        "ledger",
        "demo",
        "testing",
    },
    "jinja2": {"reports"},
    "matplotlib": {"reports"},
    "scipy": {"analysis"},
    "sklearn": {"analysis", "sklearn"},
    "obstore": {"storage", "sources"},
    "botocore": {"storage", "sources"},
    "pyarrow": {"analysis", "ledger", "features", "learning", "sources", "engines", "spark", "runs"},
    "urllib3": {"sources", "storage"},
    "certifi": {"sources"},
    "typer": {"cli"},
    "rich": {"cli", "progress"},
    "IPython": {"progress"},
    "pandas": {"features", "learning"},
    "pyspark": {"engines", "features", "spark"},
    "ray": {"engines", "features"},
    "torch": set(),
    "tensorflow": {"models"},
    "h5py": {"models"},
    "huggingface_hub": {"models"},
}

STAGES = ("sources", "images", "models")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 40
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "manager", "base_utils"}


def read_arrows() -> dict[str, set[str]]:
    rooms = dict(line.split("->") for line in ARROWS.strip().splitlines())
    arrows = {room.strip(): set(targets.split()) for room, targets in rooms.items()}
    return {room: set(arrows) if targets == {"everything"} else targets for room, targets in arrows.items()}


ALLOWED = read_arrows()
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}


class Import(NamedTuple):
    """One import of a file: `what` is a module of the package, or the top-level name of a library."""

    what: str
    is_ours: bool
    for_types_only: bool
    line: int


def module_name(path: Path) -> str:
    return next(name for name, other in MODULES.items() if other == path)


def room_of(module: str) -> str:
    """Return the room of a module; the public functions of models/__init__.py are one, `fp.models`, above runs."""
    return "fp.models" if module == "models" else module.partition(".")[0]


def imports_of(path: Path) -> list[Import]:
    """Return all imports of a file, with those inside functions and those for types only."""
    return list(_imports(ast.parse(path.read_text()), for_types_only=False, path=path))


def _imports(node: ast.AST, *, for_types_only: bool, path: Path) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield _import(alias.name, node.lineno, for_types_only)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: imports must be absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}".removeprefix("featurepress.")
            is_module = (node.module or "").startswith("featurepress") and inner in MODULES
            yield _import(
                f"{node.module}.{alias.name}" if is_module else node.module or "", node.lineno, for_types_only
            )
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, for_types_only=True, path=path)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, for_types_only=for_types_only, path=path)


def _import(name: str, line: int, for_types_only: bool) -> Import:
    top, _, rest = name.partition(".")
    if top != "featurepress":
        return Import(top, False, for_types_only, line)
    return Import(rest or "__init__", True, for_types_only, line)


IMPORTS = {path: imports_of(path) for path in FILES}


def identifier(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


every_file = pytest.mark.parametrize("path", FILES, ids=identifier)


# -- arrows --------------------------------------------------------------------------------------------------


def test_the_table_names_every_room_and_no_other() -> None:
    assert set(ALLOWED) == {room_of(module) for module in MODULES}
    assert all(targets <= set(ALLOWED) for targets in ALLOWED.values())


@every_file
def test_arrows(path: Path) -> None:
    room = room_of(module_name(path))
    wrong = [
        f"{path}:{one.line}: {room} -> {one.what} is not in the table"
        for one in IMPORTS[path]
        if one.is_ours and room_of(one.what) not in ALLOWED[room] | {room}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_arrow_of_the_table_is_used() -> None:
    used = {
        (room_of(module_name(path)), room_of(one.what)) for path in FILES for one in IMPORTS[path] if one.is_ours
    }
    unused = [
        f"{room} -> {target}"
        for room, targets in ALLOWED.items()
        for target in targets
        if room != "testing" and (room, target) not in used
    ]
    assert not unused


def test_the_table_has_no_cycle() -> None:
    assert not find_cycle(ALLOWED)


def test_the_files_have_no_cycle() -> None:
    graph = {
        name: {one.what for one in IMPORTS[path] if one.is_ours and not one.for_types_only}
        for name, path in MODULES.items()
    }
    assert not find_cycle(graph)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the names on a cycle: those that remain after removing, repeatedly, all without targets."""
    left = {name: set(targets) & set(graph) - {name} for name, targets in graph.items()}
    while ends := [name for name, targets in left.items() if not targets]:
        for name in ends:
            del left[name]
        for targets in left.values():
            targets.difference_update(ends)
    return sorted(left)


def test_a_cycle_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_one_another(stage: str) -> None:
    assert not ALLOWED[stage] & set(STAGES)
    assert "embedding" not in ALLOWED[stage]


def test_only_the_tasks_of_runs_import_the_embedding() -> None:
    found = {
        identifier(path)
        for path in FILES
        for one in IMPORTS[path]
        if room_of(one.what) == "embedding" and one.is_ours
    }
    assert {name for name in found if name.startswith("runs/")} == {"runs/tasks.py"}


def test_there_are_few_rooms() -> None:
    assert len({module.partition(".")[0] for module in MODULES}) <= 26


def test_engines_do_not_handle_images() -> None:
    assert not ALLOWED["engines"] & {"embedding", "runs", *STAGES}
    allowed = sys.stdlib_module_names | {"featurepress", "pyspark", "ray", "pyarrow"}
    for path in (PACKAGE / "engines").glob("*.py"):
        assert {one.what for one in IMPORTS[path] if not one.is_ours} <= allowed
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not [name for name in names if re.search("pixel|image|decod|backbone|features", name, re.I)]


@pytest.mark.parametrize("word", ["spark", "pyspark", "ray", "partition"])
def test_the_embedding_of_a_shard_never_mentions_an_engine(word: str) -> None:
    text = (PACKAGE / "embedding" / "shard.py").read_text().lower()
    assert not re.search(rf"\b{word}s?\b(?!\()", re.sub(r"\.partition\(", "", text))


def test_no_module_imports_the_fakes() -> None:
    for path in FILES:
        assert not [one for one in IMPORTS[path] if one.what == "testing"], path


def test_only_the_registries_name_the_fakes() -> None:
    found = {
        (identifier(path), node.value)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "featurepress.testing" in node.value
    }
    assert found == {
        ("sources/registry.py", "featurepress.testing:DelayedSource"),
        ("sources/registry.py", "featurepress.testing:MemorySource"),
        ("models/backbone.py", "featurepress.testing:FakeBackbone"),
    }


@every_file
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    room = room_of(module_name(path))
    wrong = [
        f"{path}:{one.line}: {one.what}"
        for one in IMPORTS[path]
        if not one.is_ours and not one.for_types_only and room not in LIBRARIES.get(one.what, {room})
    ]
    assert not wrong, "\n".join(wrong)


@every_file
def test_every_library_is_known(path: Path) -> None:
    known = sys.stdlib_module_names | set(LIBRARIES)
    assert {one.what for one in IMPORTS[path] if not one.is_ours} <= known


# -- sizes and names -----------------------------------------------------------------------------------------


@every_file
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Count the lines of a function's body, without docstring, comments and blank lines."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    skip = range(first.lineno, (first.end_lineno or first.lineno) + 1) if is_docstring else range(0)
    numbers = range(first.lineno, (function.end_lineno or function.lineno) + 1)
    return sum(
        number not in skip and bool(line := lines[number - 1].strip()) and not line.startswith("#")
        for number in numbers
    )


@every_file
def test_functions_are_short(path: Path) -> None:
    text = path.read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {function.name: code_lines(function, text.splitlines()) for function in functions}
    assert not {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES}


@every_file
def test_files_are_named_after_what_they_hold(path: Path) -> None:
    assert not {*path.relative_to(PACKAGE).with_suffix("").parts} & NO_NAMES


@every_file
def test_every_file_begins_with_its_purpose(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_folder_has_more_than_one_file() -> None:
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) > 1, folder


# -- what an import costs ------------------------------------------------------------------------------------

HEAVY = {
    "keras",
    "tensorflow",
    "requests",
    "cv2",
    "numpy",
    "pyarrow",
    "openvino",
    "PIL",
    "pandas",
    "scipy",
}

WITH_ARGUMENTS = """
import sys
sys.argv = ["featurepress", {arguments}]
from featurepress.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(program: str) -> set[str]:
    """Run a program in a new interpreter; return the top-level names of the modules it has loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}\nimport sys; print('\\nLOADED', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = done.stdout.rpartition("\nLOADED ")[2].split()
    return {name.partition(".")[0] for name in names} | {n for n in names if n.startswith("featurepress")}


def test_importing_the_package_imports_nothing_heavy() -> None:
    modules = loaded("import featurepress; featurepress.__version__; dir(featurepress)")
    assert not modules & HEAVY
    assert {name for name in modules if name.startswith("featurepress.")} == {"featurepress._version"}


@pytest.mark.parametrize("arguments", ["'--help'", "'--version'", "'embed', '--help'", "'info', '--help'"])
def test_the_help_loads_nothing_heavy(arguments: str) -> None:
    modules = loaded(WITH_ARGUMENTS.format(arguments=arguments))
    assert "featurepress.cli.main" in modules
    assert not modules & HEAVY


def test_the_driver_loads_no_model_and_no_decoder() -> None:
    modules = loaded("import featurepress.runs.verbs")
    assert "featurepress.runs.driver" in modules
    assert not modules & {"openvino", "cv2", "PIL"}


def test_a_worker_starts_light() -> None:
    modules = loaded(
        "import featurepress.process, featurepress.ledger, featurepress.engines, featurepress.runs.tasks"
    )
    assert not modules & HEAVY


def test_every_public_name_exists() -> None:
    program = (
        "import featurepress\nfor name in featurepress.__all__: assert getattr(featurepress, name) is not None"
    )
    assert "featurepress.runs.verbs" in loaded(program)
