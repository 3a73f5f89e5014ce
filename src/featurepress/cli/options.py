"""Options of the commands, made from the settings' own declarations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import Field
from typing import Annotated, Any

import typer

from featurepress.errors import SettingError
from featurepress.settings import Choices, Constraint, declared, declared_of

Command = Callable[..., Any]

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}

_PANELS = {
    "listing": "Which images",
    "features": "What is computed",
    "images": "Limits of one image",
    "output": "What is written",
    "resources": "This machine",
    "choices": "What the file does not say",
    "reduction": "What is kept",
    "labels": "Labels",
    "classifier": "The classifier",
    "split": "How it is measured",
    "training": "Memory",
    "prediction": "What is predicted",
}


def with_settings(names: Collection[str] | None = None, **stages: Any) -> Callable[[Command], Command]:
    """Return a command an option for each setting (or those named); it gets the given ones as `options`.

    Only what the user has given is passed on, so that defaults stand in one place. More `stages` are as for
    `with_stages`, and come first.
    """
    more = [entry for name, stage in stages.items() for entry in declared_of(name, stage)]
    return _with(more + [entry for entry in declared() if names is None or entry[1].name in names])


def with_choices() -> Callable[[Command], Command]:
    """Return a command an option for each thing that can be said of a model file, in the same way."""
    return with_stages(choices=Choices)


def with_stages(**stages: Any) -> Callable[[Command], Command]:
    """Return a command an option for each setting of some stages, named as their panels are, in the same way."""
    return _with([entry for name, stage in stages.items() for entry in declared_of(name, stage)])


def with_engine(command: Command) -> Command:
    """Add the options that select an engine to a command; the engine is in its `options`, and closed after it."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        from featurepress.engines import open_engine

        asked = {name: arguments.pop(name) for name in ("engine", "master", "spark_conf", "address")}
        name = asked.pop("engine")
        engine = open_engine(name, **{**asked, "spark_conf": tuple(asked["spark_conf"] or ())})
        with contextlib.closing(engine) if engine is not None else contextlib.nullcontext():
            arguments["options"] = {**arguments["options"], "engine": engine}
            return command(**arguments)

    own = list(inspect.signature(command).parameters.values())
    added = list(inspect.signature(_where).parameters.values())
    hints = {**inspect.get_annotations(command, eval_str=True), **inspect.get_annotations(_where, eval_str=True)}
    parameters = [p.replace(annotation=hints[p.name]) for p in (*own, *added)]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


_ENGINE_PANEL = "Where it runs"


def _where(
    *,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|spark|ray",
            help="Worker processes of this machine, a Spark cluster, or a Ray cluster.",
            rich_help_panel=_ENGINE_PANEL,
        ),
    ] = "local",
    master: Annotated[
        str | None,
        typer.Option(
            help="Spark: local[4], spark://host:7077, yarn, k8s://…, sc://host:15002 (default: spark-submit's).",
            rich_help_panel=_ENGINE_PANEL,
        ),
    ] = None,
    spark_conf: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting of Spark; may be given again.", rich_help_panel=_ENGINE_PANEL
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray: auto, host:6379, ray://host:10001 (default: RAY_ADDRESS, or this machine alone).",
            rich_help_panel=_ENGINE_PANEL,
        ),
    ] = None,
) -> None:
    """Declare the options of `with_engine`."""


def _with(chosen: list[tuple[str, Field[Any], Constraint]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            given = {item.name: arguments.pop(item.name) for _, item, _ in chosen}
            options = {
                item.name: _parsed(item.name, rule, given[item.name])
                for _, item, rule in chosen
                if given[item.name] is not None
            }
            return command(**arguments, options=options)

        added = [_parameter(stage, item.name, item.default, rule) for stage, item, rule in chosen]
        wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        # Typer resolves annotations from here, and the settings' are not in the command's own namespace.
        hints = inspect.get_annotations(command, eval_str=True)
        wrapper.__annotations__ = {p.name: hints[p.name] for p in own} | {p.name: p.annotation for p in added}
        wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(annotation=wrapper.__annotations__[p.name]) for p in [*own, *added]]
        )
        return wrapper

    return decorate


def _parameter(stage: str, name: str, default: Any, rule: Constraint) -> inspect.Parameter:
    flag = rule.flag or "--" + name.replace("_", "-")
    kind = bool if rule.kind is bool else str  # numbers are read here, so that a wrong one gets our own sentence
    help_text = rule.help
    if not rule.optional and rule.kind is not bool:
        help_text += f" \\[default: {_shown(name, default)}]"
    option = typer.Option(
        flag,
        help=help_text,
        show_default=False,
        metavar=_metavar(name, rule),
        rich_help_panel=_PANELS[stage],
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(name: str, rule: Constraint) -> str | None:
    if rule.choices:
        return "|".join(rule.choices)
    if name.endswith("_bytes"):
        return "BYTES"
    if name.endswith("_file"):
        return "FILE"
    return {int: "N", float: "NUMBER", str: "NAME", tuple: "NUMBERS"}.get(rule.kind)


def _shown(name: str, default: Any) -> str:
    if name.endswith("_bytes"):
        return f"{default // 2**20}MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parsed(name: str, rule: Constraint, value: Any) -> Any:
    if name.endswith("_bytes"):
        return parse_bytes(rule.called(name), value)
    if rule.kind is tuple:
        with contextlib.suppress(ValueError):
            return tuple(float(part) for part in value.split(","))
    if rule.kind in (int, float):
        with contextlib.suppress(ValueError):
            return rule.kind(value)
    return value


def parse_bytes(what: str, text: str) -> int:
    """Turn ``4GB``, ``500 MiB`` or ``1000`` into a number of bytes; an error begins with `what` it is."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise SettingError(f"{what} must be a number of bytes such as 4GB or 500MiB. Got '{text}'.")
    return int(float(match[1]) * _UNITS[match[2]])
