"""A notebook in a real Jupyter kernel: embed, train, evaluate and predict, with a progress bar and tables."""

from __future__ import annotations

from typing import Any

import pytest

from featurepress.demo.orchard import draw_orchard

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = {
    "embed": """
import featurepress as fp
features = fp.embed(["orchard/Training", "orchard/Test"], out="features", model="embedded",
                    labels="{split}/{label}/{name}")
""",
    "features": "features",
    "silent": 'again = fp.embed("orchard/Test", out="again", model="embedded", progress=False)',
    "train": 'model = fp.train(features, out="model", near_duplicate_threshold=0.99)',
    "model": "model",
    "evaluate": "evaluation = fp.evaluate(model, features, near_duplicate_threshold=0.99)",
    "evaluation": "evaluation",
    "predict": 'predictions = fp.predict(model, "orchard/Test", out="predictions")',
    "predictions": "predictions",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Execute the cells; return the outputs of each."""
    folder = tmp_path_factory.mktemp("notebook")
    draw_orchard(folder / "orchard", images_per_kind=12, scenes=0, broken=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.values()])
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def html_of(outputs: list[Any]) -> str:
    return "".join(one.get("data", {}).get("text/html", "") for one in outputs)


def text_of(outputs: list[Any]) -> str:
    return "".join(one.get("data", {}).get("text/plain", "") + one.get("text", "") for one in outputs)


@pytest.mark.parametrize("name", ["embed", "train", "evaluate", "predict"])
def test_progress_is_shown_without_asking(outputs: dict[str, list[Any]], name: str) -> None:
    assert html_of(outputs[name]) or text_of(outputs[name])


def test_no_progress_is_silence(outputs: dict[str, list[Any]]) -> None:
    assert not outputs["silent"]


@pytest.mark.parametrize("name", ["features", "model", "evaluation", "predictions"])
def test_results_are_tables_in_a_notebook(outputs: dict[str, list[Any]], name: str) -> None:
    assert "<table" in html_of(outputs[name])
    assert "object at 0x" not in text_of(outputs[name])
