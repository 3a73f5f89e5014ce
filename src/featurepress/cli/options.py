"""Options of the commands, built from the declared settings."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurepress.errors import SettingError
from featurepress.settings import Constraint, declared_of
from featurepress.settings.analysis import (
    ClassifierSettings,
    LabelSettings,
    PredictionSettings,
    ReductionSettings,
    SplitSettings,
    TrainingSettings,
)
from featurepress.settings.constraint import Stage
from featurepress.settings.model_files import Choices
from featurepress.settings.run import (
    RUN_STAGES,
    EngineSettings,
    FeatureSettings,
    ImageSettings,
    ListingSettings,
    OutputSettings,
    ResourceSettings,
)

if TYPE_CHECKING:
    from featurepress.engines import Engine

Command = Callable[..., Any]
Out = Annotated[str, typer.Option("--out", "-o", help="The destination; {time} in it becomes the date and time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

_EXPONENTS = {None: 0, "K": 1, "M": 2, "G": 3, "T": 4}
_PANELS: dict[type[Stage], str] = {
    ListingSettings: "Images",
    FeatureSettings: "Features",
    ImageSettings: "Limits of one image",
    OutputSettings: "Output",
    ResourceSettings: "This machine",
    Choices: "Model file",
    ReductionSettings: "Components",
    LabelSettings: "Labels",
    ClassifierSettings: "Classifier",
    SplitSettings: "Test images",
    TrainingSettings: "Memory",
    PredictionSettings: "Predictions",
    EngineSettings: "Engine",
}


def with_settings(
    *stages: type[Stage], names: Collection[str] | None = None, engine: bool = False
) -> Callable[[Command], Command]:
    """Return a decorator that gives a command an option for each setting, or those of these `names`.

    The command gets the options that the user has set as `options`; all defaults are in the declarations. With
    `engine`, options to select one are added, and it is in `options`, open until the command ends.
    """
    entries = [
        (stage, item, rule)
        for stage in (*stages, *([EngineSettings] if engine else []))
        for _, item, rule in declared_of("", stage)
        if names is None or item.name in names or stage is EngineSettings
    ]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            options = {}
            for _, item, rule in entries:
                if (value := arguments.pop(item.name)) not in (None, []):
                    options[item.name] = _parsed(item.name, rule, value)
            if not engine:
                return command(**arguments, options=options)
            with _opened_engine(options) as opened:
                return command(**arguments, options={**options, "engine": opened})

        hints = inspect.get_annotations(command, eval_str=True)
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
        parameters = [p.replace(annotation=hints[p.name]) for p in own]
        parameters += [_parameter(stage, item.name, item.default, rule) for stage, item, rule in entries]
        # Typer reads both.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def with_run_settings(names: Collection[str] | None = None, *stages: type[Stage]) -> Callable[[Command], Command]:
    """Return `with_settings` for some stages, the settings of a run, and an engine."""
    return with_settings(*stages, *RUN_STAGES.values(), names=names, engine=True)


@contextlib.contextmanager
def _opened_engine(options: dict[str, Any]) -> Iterator[Engine | None]:
    """Remove the options of the engine, and yield the engine."""
    from featurepress.engines import open_engine

    own = {item.name: options.pop(item.name) for item in fields(EngineSettings) if item.name in options}
    settings = EngineSettings(**own)
    engine = open_engine(
        settings.engine, master=settings.master, spark_conf=settings.spark_conf, address=settings.address
    )
    with contextlib.closing(engine) if engine is not None else contextlib.nullcontext():
        yield engine


def _parameter(stage: type[Stage], name: str, default: Any, rule: Constraint) -> inspect.Parameter:
    help_text = rule.help
    if default is not None and rule.kind not in (bool, list):
        help_text += f" \\[default: {_shown(name, default)}]"
    option = typer.Option(
        rule.flag or "--" + name.replace("_", "-"),
        help=help_text,
        show_default=False,
        metavar=_metavar(name, rule),
        rich_help_panel=_PANELS.get(stage, "Options"),
    )
    # Numbers are parsed here, so that their errors are those of the settings.
    kind: Any = {bool: bool, list: list[str]}.get(rule.kind, str)
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(name: str, rule: Constraint) -> str | None:
    if rule.choices:
        return "|".join((*rule.choices, *(["PATTERN"] if rule.form else [])))
    if name.endswith(("_bytes", "_file")):
        return name.rpartition("_")[2].upper()
    if name == "spark_conf":
        return "NAME=VALUE"
    return {int: "N", float: "NUMBER", str: "NAME", tuple: "NUMBERS", list: "PATTERN"}.get(rule.kind)


def _shown(name: str, default: Any) -> str:
    if name.endswith("_bytes"):
        return f"{default // 2**30}GiB" if default % 2**30 == 0 else f"{default // 2**20}MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parsed(name: str, rule: Constraint, value: Any) -> Any:
    if name.endswith("_bytes"):
        return _parsed_bytes(rule.called(name), value)
    with contextlib.suppress(ValueError):  # the settings refuse what is not a number
        if rule.kind is tuple:
            return tuple(map(float, value.split(",")))
        if rule.kind in (int, float):
            return rule.kind(value)
    return value


def _parsed_bytes(subject: str, text: str) -> int:
    """Parse ``4GB``, ``500 MiB`` or ``1000``; errors begin with `subject`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?\s*", text.upper())
    if match is None:
        raise SettingError(f"{subject} must be a number of bytes such as 4GB or 500MiB. Got '{text}'.")
    number, unit, is_binary = match.groups()
    return int(float(number) * (1024 if is_binary else 1000) ** _EXPONENTS[unit])
