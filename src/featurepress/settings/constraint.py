"""Declare the allowed values of settings as data. A stage is a frozen dataclass of settings that checks itself."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self

from featurepress.errors import SettingError


@dataclass(frozen=True)
class Constraint:
    """The allowed values of a setting, and how the command shows it."""

    kind: type  # int, float, bool, str; tuple for one number or one per channel; list for any number of texts
    help: str  # for --help
    choices: tuple[str, ...] = ()  # the allowed words
    form: str = ""  # a regular expression for further texts
    form_name: str = ""  # what errors call such a text
    minimum: float | None = None  # included
    maximum: float | None = None  # included
    optional: bool = False  # whether None is allowed
    flag: str | None = None  # the command's option, if it is not the name with dashes
    identity: bool = True  # shapes the features or their layout: runs that differ in it have different plans

    def called(self, name: str) -> str:
        """Return the name of the setting in errors."""
        return f"The '{name}' setting" + (f" ({self.flag})" if self.flag else "")

    def check(self, name: str, value: object) -> None:
        """Raise SettingError unless `value` is allowed for the setting `name`."""
        if value is None and self.optional:
            return
        if self.choices:
            if value not in self.choices and not self._has_form(value):
                raise SettingError(
                    f"{self.called(name)} must be {_spoken_list(self.choices, self.form_name)}. "
                    f"Got {value!r}{nearest(str(value), self.choices)}"
                )
            return
        if not self._fits(value):
            raise SettingError(f"{self.called(name)} must be {self._allowed()}. Got {value!r}.")

    def _has_form(self, value: object) -> bool:
        return bool(self.form) and isinstance(value, str) and re.fullmatch(self.form, value) is not None

    def _fits(self, value: object) -> bool:
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if self.kind is str:
            return isinstance(value, str) and value != ""
        if self.kind is list:
            return isinstance(value, tuple | list) and all(isinstance(text, str) and text for text in value)
        if self.kind is tuple:
            return isinstance(value, tuple | list) and len(value) in (1, 3) and all(map(_is_number, value))
        if not isinstance(value, int if self.kind is int else (int, float)):
            return False
        low = self.minimum is None or value >= self.minimum
        return low and (self.maximum is None or value <= self.maximum)

    def _allowed(self) -> str:
        if self.kind is tuple:
            return "one number, or three as 0.485,0.456,0.406"
        if self.kind is list:
            return "a list of texts"
        word = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[self.kind]
        if self.minimum is not None and self.maximum is not None:
            return f"{word} from {self.minimum:.15g} to {self.maximum:.15g}"
        return word if self.minimum is None else f"{word} of at least {self.minimum:.15g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def setting(default: Any, kind: type, help: str, **constraint: Any) -> Any:
    """Declare a setting: a dataclass field with its constraint."""
    return field(default=default, metadata={"constraint": Constraint(kind, help, **constraint)})


def optional_setting(kind: type, help: str, **constraint: Any) -> Any:
    """Declare a setting that may be None, its default."""
    return setting(None, kind, help, optional=True, **constraint)


def _spoken_list(words: tuple[str, ...], more: str = "") -> str:
    quoted = [f"'{word}'" for word in words] + ([more] if more else [])
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Return the end of an error sentence, with the known names that are similar to `name`."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {_spoken_list(tuple(near))}?" if near else "."


class Stage:
    """A group of settings that checks itself."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            rule, value = item.metadata["constraint"], getattr(self, item.name)
            rule.check(item.name, value)
            if rule.kind in (list, tuple) and value is not None:  # JSON has no tuples; the dataclass is frozen
                object.__setattr__(self, item.name, tuple(value))

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Return the stage with these settings; see `sorted_options`."""
        stage: Self = sorted_options({"": cls}, options)[""]
        return stage


def declared_of(name: str, stage: Any) -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield the settings of a stage as (name of the stage, dataclass field, constraint), in order."""
    for item in fields(stage):
        yield name, item, item.metadata["constraint"]


def sorted_options(stages: Mapping[str, type[Stage]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sort flat options into stages, and return the stages by name.

    Raises
    ------
    SettingError
        For an unknown name (the near ones are listed) or a value that is not allowed.
    """
    stage_of = {item.name: name for name, stage in stages.items() for item in fields(stage)}  # type: ignore[arg-type]
    values: dict[str, dict[str, Any]] = {name: {} for name in stages}
    for name, value in options.items():
        if name not in stage_of:
            raise SettingError(f"There is no setting '{name}'{nearest(name, list(stage_of))}")
        values[stage_of[name]][name] = value
    return {name: stage(**values[name]) for name, stage in stages.items()}
