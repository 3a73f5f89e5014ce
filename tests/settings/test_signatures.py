"""The typed options of the public functions, the declared settings and the options of the commands are the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer.main

import featurepress as fp
from featurepress.cli.main import app
from featurepress.settings import (
    ClassifierSettings,
    Constraint,
    LabelSettings,
    PredictionSettings,
    ReductionSettings,
    SplitSettings,
    TrainingSettings,
    declared,
    declared_of,
)

OF_A_RUN = {item.name: rule for _, item, rule in declared()}
STAGES: dict[str, list[Any]] = {
    "reduce": [ReductionSettings],
    "evaluate": [LabelSettings, SplitSettings, TrainingSettings],
    "train": [LabelSettings, SplitSettings, TrainingSettings, ClassifierSettings],
    "predict": [PredictionSettings],
}
VERBS = ["embed", "estimate", "resume", "update", "retry", "reduce", "train", "evaluate", "predict"]


def rules_of(verb: str) -> dict[str, Constraint]:
    """Return the declared settings by the name of a verb's options."""
    own = {item.name: rule for stage in STAGES.get(verb, []) for _, item, rule in declared_of("", stage)}
    return (OF_A_RUN if verb not in STAGES or verb == "predict" else {}) | own


def hints_of(verb: str) -> dict[str, Any]:
    """Return the types of a verb's options, from the TypedDict in its signature."""
    unpacked = get_type_hints(getattr(fp, verb))["options"]
    return get_type_hints(get_args(unpacked)[0])


def expected_type(rule: Constraint) -> Any:
    kind: Any = Sequence[str] if rule.kind is list else rule.kind
    if rule.choices and not rule.form:
        kind = Literal[rule.choices]
    return kind | None if rule.optional else kind


@pytest.mark.parametrize("verb", VERBS)
def test_the_types_of_the_options_are_those_of_the_settings(verb: str) -> None:
    rules = rules_of(verb)
    assert {name: hint for name, hint in hints_of(verb).items() if hint != expected_type(rules[name])} == {}


@pytest.mark.parametrize("verb", ["embed", "estimate", "reduce", "train", "evaluate"])
def test_every_setting_is_an_option(verb: str) -> None:
    assert set(hints_of(verb)) == set(rules_of(verb))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "estimate"])
def test_the_command_has_the_options_of_the_function(verb: str) -> None:
    command: Any = typer.main.get_command(app)
    options = {parameter.name for parameter in command.commands[verb].params}
    assert set(hints_of(verb)) <= options
    parameters = set(inspect.signature(getattr(fp, verb)).parameters) - {"options", "progress"}
    named_otherwise = {"features"}  # an argument, DEST or FEATURES
    assert parameters - named_otherwise <= options


@pytest.mark.parametrize("verb", [*(verb for verb in VERBS if verb != "estimate"), "export"])
def test_progress_is_shown_by_default(verb: str) -> None:
    assert inspect.signature(getattr(fp, verb)).parameters["progress"].default is True


def test_an_option_is_typed_by_a_literal_where_the_values_are_words() -> None:
    assert get_origin(hints_of("embed")["pooling"]) is Literal
