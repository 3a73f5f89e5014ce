"""featurepress info."""

from __future__ import annotations

from typing import Annotated

import typer

from featurepress.cli import measurements, output
from featurepress.cli.options import AsJson


def info(
    destination: Annotated[str, typer.Argument(help="A feature set, or a trained model.", metavar="DEST")],
    as_json: AsJson = False,
) -> None:
    """Describe a feature set or a trained model: contents, origin, and the accuracy of a model."""
    from featurepress.features.feature_set import open_features
    from featurepress.learning.model import is_model, open_model

    if is_model(destination):
        model = open_model(destination)
        if as_json:
            output.print_json(measurements.model_json(model))
        else:
            measurements.model_lines(model).print(output.console(stderr=False))
        return
    features = open_features(destination, allow_incomplete=True)
    if as_json:
        complete = {} if features.is_complete else {"status": "incomplete", "embedded": len(features)}
        output.print_json({**features.plan.to_json(), **(features.manifest or {}), **complete})
    else:
        output.print_info(features)
