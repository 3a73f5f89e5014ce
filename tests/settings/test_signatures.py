"""Options have the same names, types and defaults in Python, on the command line, in docs and in the settings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_type_hints

import pytest
import typer.main

import featurepress as fp
from featurepress.cli.main import app
from featurepress.settings import (
    Choices,
    ClassifierSettings,
    Constraint,
    FeatureSettings,
    ImageSettings,
    LabelSettings,
    PredictionSettings,
    ReductionSettings,
    SplitSettings,
    TrainingSettings,
    declared,
    declared_of,
)
from featurepress.sklearn import ImageFeaturizer
from featurepress.spark import featurize

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OF_A_RUN = {item.name: (item.default, rule) for _, item, rule in declared()}
STAGES: dict[str, list[Any]] = {
    "reduce": [ReductionSettings],
    "evaluate": [LabelSettings, SplitSettings, TrainingSettings],
    "train": [LabelSettings, SplitSettings, TrainingSettings, ClassifierSettings],
    "predict": [PredictionSettings],
    "featurize": [FeatureSettings, ImageSettings],
}
FUNCTIONS: dict[str, Any] = {
    "embed": fp.embed,
    "estimate": fp.estimate,
    "resume": fp.resume,
    "update": fp.update,
    "retry": fp.retry,
    "reduce": fp.reduce,
    "train": fp.train,
    "evaluate": fp.evaluate,
    "predict": fp.predict,
    "featurize": featurize,
}
MODEL_COMMANDS = ["list", "show", "pull", "add", "verify", "bench"]


def settings_of(verb: str) -> dict[str, tuple[Any, Constraint]]:
    """Return default and constraint of the settings that a verb may have as options."""
    own = {
        item.name: (item.default, rule)
        for stage in STAGES.get(verb, [])
        for _, item, rule in declared_of("", stage)
    }
    return (OF_A_RUN if verb not in STAGES or verb == "predict" else {}) | own


def option_types(verb: str) -> dict[str, Any]:
    """Return the types of a verb's options, from the TypedDict in its signature."""
    unpacked = get_type_hints(FUNCTIONS[verb], localns={"DataFrame": Any})["options"]
    return get_type_hints(get_args(unpacked)[0])


def declared_type(rule: Constraint) -> Any:
    sequences: dict[type, Any] = {list: Sequence[str], tuple: Sequence[float]}
    kind: Any = sequences.get(rule.kind, rule.kind)
    if rule.choices and not rule.form:
        kind = Literal[rule.choices]
    return kind | None if rule.optional else kind


def command_options(command: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in command.params}


def defaults_of(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


# -- Python and the settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_the_types_of_the_options_are_those_of_the_settings(verb: str) -> None:
    settings, differences = settings_of(verb), {"precision"} if verb == "featurize" else set()
    wrong = {name for name, kind in option_types(verb).items() if kind != declared_type(settings[name][1])}
    assert wrong == differences  # 'auto' needs a sample of the images


@pytest.mark.parametrize("verb", ["embed", "estimate", "reduce", "train", "evaluate", "featurize"])
def test_every_setting_is_an_option(verb: str) -> None:
    assert set(option_types(verb)) == set(settings_of(verb))


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_the_docstring_names_every_option(verb: str) -> None:
    text = inspect.getdoc(FUNCTIONS[verb]) or ""
    for other in re.findall(r"As for `([a-z]+)`|with the settings of `([a-z]+)`|settings of `([a-z]+)`", text):
        text += inspect.getdoc(FUNCTIONS["".join(other)]) or ""
    if verb == "retry":
        text += inspect.getdoc(fp.resume) or ""
    assert [name for name in option_types(verb) if f"`{name}`" not in text] == []


def test_the_parameters_of_the_estimator_are_settings() -> None:
    hints = get_type_hints(ImageFeaturizer.__init__)
    own = {"self", "errors", "precision"}
    for name, default in defaults_of(ImageFeaturizer.__init__).items():
        if name not in own:
            declared_default, rule = OF_A_RUN[name]
            assert (default, hints[name]) == (declared_default, declared_type(rule)), name
    assert set(option_types("featurize")) < set(defaults_of(ImageFeaturizer.__init__))


# -- Python and the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verb for verb in [*FUNCTIONS, "export"] if verb in COMMANDS])
def test_the_command_has_the_parameters_and_defaults_of_the_function(verb: str) -> None:
    options, parameters = command_options(COMMANDS[verb]), defaults_of(getattr(fp, verb))
    if verb in FUNCTIONS:
        declared_options = set(settings_of(verb)) - set(parameters)
        assert declared_options & set(options) == set(option_types(verb))
        assert {options[name].default for name in option_types(verb)} == {None}  # then it is not passed on
    for name, default in parameters.items():
        if name not in ("options", "progress", "engine", "features"):  # features: the argument DEST or FEATURES
            option = options[name]
            assert option.required == (default is inspect.Parameter.empty), name
            assert option.required or shown_default(option) == ("" if default is None else str(default)), name


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_the_models_command_has_the_parameters_and_defaults_of_the_function(name: str) -> None:
    options = command_options(COMMANDS["models"].commands[name])
    for parameter, default in defaults_of(getattr(fp.models, name)).items():
        if parameter not in ("progress", "name", "sources", "options"):
            option = options[parameter]
            assert option.required or option.default == default or (option.default, default) == (None, ()), (
                parameter
            )
    if name == "add":
        assert {item.name for _, item, _ in declared_of("", Choices)} < set(options)


def called_functions(command: Any) -> set[str]:
    """Return the public functions with the name of a command that the source of a command names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(command.callback))))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in names if name in {*FUNCTIONS, "export"}}


@pytest.mark.parametrize("verb", [verb for verb in [*FUNCTIONS, "export"] if verb in COMMANDS])
def test_a_command_calls_the_public_function_of_its_name(verb: str) -> None:
    callback = inspect.unwrap(COMMANDS[verb].callback)
    assert callback.__module__ == f"featurepress.cli.{verb}"
    assert called_functions(COMMANDS[verb]) == ({"embed", "estimate"} if verb == "embed" else {verb})


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_a_models_command_calls_the_public_function_of_its_name(name: str) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(COMMANDS["models"].commands[name].callback))))
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fp_models"
    }
    assert called == ({"show", "outputs"} if name == "show" else {name})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((fp, verb) for verb in [*FUNCTIONS, "export"] if verb != "featurize"),
        *((fp.models, name) for name in MODEL_COMMANDS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_progress_is_shown_by_default(module: ModuleType, name: str) -> None:
    assert inspect.signature(getattr(module, name)).parameters["progress"].default is True


# -- docs ----------------------------------------------------------------------------------------------------

LITERAL = re.compile(r"`([^`]+)`|([\d.]+(?:[KMGT]iB)?)")
DOCUMENTED = {
    "reduce": ["reduce"],
    "train": ["train"],
    "predict": ["predict"],
    "sources": ["embed"],
    "export": ["export"],
    "spark": ["embed"],
    "ray": ["embed"],
    "models": ["models", "add"],
}


def documented_options(page: str) -> list[tuple[list[str], str]]:
    """Return the rows of the tables of options on a page: the options, and the cell of the default."""
    found = []
    column = 0  # of the default; 0 outside a table of options
    for line in (HOW_TO / f"{page}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if "default" in cells:
            column = cells.index("default")
        elif not line:
            column = 0
        elif column and line.startswith("| `--"):
            found.append(
                (re.findall(r"`(--[a-z-]+)[^`]*`", cells[0]), cells[column] if column < len(cells) else "")
            )
    return found


def shown_default(option: Any) -> str:
    """Return the default that ``--help`` shows for an option."""
    if (match := re.search(r"\[default: (.*)\]$", option.help or "")) is not None:
        return match[1]
    if option.is_flag:
        return "off"
    return "" if option.default is None else str(option.default)


@pytest.mark.parametrize("page", DOCUMENTED)
def test_the_tables_of_the_docs_have_the_names_and_defaults_of_the_options(page: str) -> None:
    command: Any = typer.main.get_command(app)
    for name in DOCUMENTED[page]:
        command = command.commands[name]
    by_flag = {flag: option for option in command.params for flag in option.opts}
    rows = documented_options(page)
    assert rows
    for flags, default in rows:
        literal = LITERAL.fullmatch(default)
        for flag in flags:
            option = by_flag[flag]
            if shown := shown_default(option):
                assert (default if literal is None else literal[1] or literal[2]) == shown, flag
            elif literal is not None:
                assert f"(default: {literal[1] or literal[2]})" in option.help, flag


def test_the_docs_name_every_option_of_a_setting() -> None:
    for page, verb in {"reduce": "reduce", "train": "train"}.items():
        named = {flag for flags, _ in documented_options(page) for flag in flags}
        missing = {"--" + name.replace("_", "-") for name in settings_of(verb)} - named
        assert missing == set()
