"""The public names: the table of lazy imports and the imports for editors name the same things."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featurepress as fp
from tests.features.feature_sets import labelled


def typed_names() -> dict[str, str]:
    """Return name -> module of the imports below TYPE_CHECKING."""
    tree = ast.parse(Path(str(fp.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            module = str(node.module).removeprefix("featurepress").removeprefix(".")
            found[alias.asname or alias.name] = module or alias.name
    return found


def test_editors_see_the_names_that_can_be_imported() -> None:
    assert set(typed_names()) | {"__version__"} == set(fp.__all__) == set(dir(fp))


@pytest.mark.parametrize("name", fp.__all__)
def test_a_public_name_is_the_one_that_editors_see(name: str) -> None:
    value = getattr(fp, name)
    if name == "__version__":
        return
    module = __import__(f"featurepress.{typed_names()[name]}", fromlist=["x"])
    assert value is (module if typed_names()[name] == name else getattr(module, name))


def test_a_feature_set_shows_its_users_no_internals(tmp_path: Path) -> None:
    assert [name for name in dir(labelled(tmp_path)) if not name.startswith("_")] == [
        "batches",
        "bytes",
        "failures",
        "fingerprint",
        "is_complete",
        "labels",
        "location",
        "manifest",
        "n_features",
        "parts",
        "plan",
        "require_comparable",
        "schema",
        "summary",
        "to_numpy",
        "to_pandas",
        "to_ray",
        "to_spark",
        "to_table",
        "uris",
    ]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = fp.nothing


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, featurepress; print(*{m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(result.stdout.split()) <= {"featurepress", "__main__"}
