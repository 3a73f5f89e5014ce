"""Settings: each declared constraint, and the words in which a wrong value is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from featurepress.errors import RequestError, SettingError
from featurepress.settings import Constraint, Settings, available_cores, declared, nearest

DECLARED = {item.name: (stage, item.default, rule) for stage, item, rule in declared()}
STRANGERS: dict[type, list[Any]] = {
    int: [1.5, 2.0, "3", True, False, [1], b"1"],
    float: ["0.5", True, False, [1.0], float("nan")],
    bool: [0, 1, "true", 1.0],
    str: [1, True, "", ["a"], b"a"],
    list: [1, "a", [1], ["a", ""], True],
}


def get(settings: Settings, name: str) -> Any:
    return getattr(getattr(settings, DECLARED[name][0]), name)


def message(**options: Any) -> str:
    with pytest.raises(SettingError) as caught:
        Settings.from_options(**options)
    return str(caught.value)


def good_values(rule: Constraint) -> list[Any]:
    if rule.choices:
        return list(rule.choices)
    if rule.kind is bool:
        return [True, False]
    if rule.kind is list:
        return [(), ("*.jpg",), ("a", "b/*")]
    if rule.kind is str:
        return ["embedded"]
    assert rule.minimum is not None, "every number has a range"
    values = [rule.kind(rule.minimum), rule.kind(rule.minimum) + 1]
    return values if rule.maximum is None else [values[0], rule.kind(rule.maximum)]


@pytest.mark.parametrize("name", DECLARED)
def test_the_default_is_allowed(name: str) -> None:
    _, default, rule = DECLARED[name]
    rule.check(name, default)
    assert get(Settings(), name) == default
    assert (default is None) <= rule.optional


@pytest.mark.parametrize("name", DECLARED)
def test_allowed_values_are_taken_as_given(name: str) -> None:
    for value in good_values(DECLARED[name][2]):
        taken = get(Settings.from_options(**{name: value}), name)
        assert taken == value
        assert type(taken) is type(value)


@pytest.mark.parametrize("name", DECLARED)
def test_a_value_of_another_type_is_refused(name: str) -> None:
    rule = DECLARED[name][2]
    for value in STRANGERS[rule.kind]:
        text = message(**{name: value})
        assert text.startswith(f"The '{name}' setting")
        assert " must be " in text
        assert f"Got {value!r}" in text
        assert text[-1] in ".?"
        assert "\n" not in text


@pytest.mark.parametrize("name", [name for name, (_, _, rule) in DECLARED.items() if rule.minimum is not None])
def test_a_value_out_of_range_is_refused(name: str) -> None:
    rule = DECLARED[name][2]
    assert rule.minimum is not None
    step = 1 if rule.kind is int else 1e-6
    outside = [rule.minimum - step, -1_000_000]
    if rule.maximum is not None:
        outside += [rule.maximum + step, 10**30]
    for value in (rule.kind(number) for number in outside):
        assert f"Got {value!r}." in message(**{name: value})


@pytest.mark.parametrize("name", DECLARED)
def test_none_is_for_optional_settings_only(name: str) -> None:
    if DECLARED[name][2].optional:
        assert get(Settings.from_options(**{name: None}), name) is None
    else:
        assert "Got None" in message(**{name: None})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "The 'workers' setting must be an integer from 1 to 1024. Got 0."),
        ({"limit": 0}, "The 'limit' setting must be an integer of at least 1. Got 0."),
        ({"limit": True}, "The 'limit' setting must be an integer of at least 1. Got True."),
        (
            {"images_per_part": 10_000_000},
            "The 'images_per_part' setting must be an integer from 1 to 1000000. Got 10000000.",
        ),
        ({"parts": 100_000}, "The 'parts' setting must be an integer from 1 to 99999. Got 100000."),
        ({"max_failures": 1.5}, "The 'max_failures' setting must be a number from 0 to 1. Got 1.5."),
        (
            {"timeout_seconds": 0},
            "The 'timeout_seconds' setting must be a number from 0.1 to 86400. Got 0.",
        ),
        ({"all_files": "yes"}, "The 'all_files' setting must be true or false. Got 'yes'."),
        ({"model": ""}, "The 'model' setting must be a text. Got ''."),
        (
            {"pooling": "avgg"},
            "The 'pooling' setting must be 'avg', 'flatten' or 'max'. Got 'avgg'; did you mean 'avg'?",
        ),
        (
            {"labels": "xyz"},
            "The 'labels' setting must be 'auto', 'none', 'parent' or a pattern such as '{split}/{label}/{name}'. "
            "Got 'xyz'.",
        ),
        ({"include": "*.jpg"}, "The 'include' setting must be a list of texts. Got '*.jpg'."),
    ],
)
def test_a_refusal_says_what_is_allowed_and_what_was_given(options: dict[str, Any], text: str) -> None:
    assert message(**options) == text


@pytest.mark.parametrize("value", [float("inf"), 1e12])
def test_a_timeout_that_no_clock_can_wait_for_is_refused(value: float) -> None:
    assert "from 0.1 to 86400" in message(timeout_seconds=value)


def test_an_unknown_name_lists_the_near_ones() -> None:
    assert message(poolin="avg") == "There is no setting 'poolin'; did you mean 'pooling'?"
    assert "'max_pixels'" in message(max_pixel=3)
    assert message(zzz=1) == "There is no setting 'zzz'."


def test_a_wrong_value_is_a_bad_request_and_a_value_error() -> None:
    with pytest.raises(RequestError):
        Settings.from_options(workers=0)
    with pytest.raises(ValueError, match="workers"):
        Settings.from_options(workers=0)
    assert SettingError.exit_code == 2


def test_names_are_unique_across_the_stages() -> None:
    assert len(DECLARED) == sum(len(stage) for stage in Settings().to_json().values())


def test_every_setting_explains_itself_in_one_sentence() -> None:
    for _, _, rule in DECLARED.values():
        assert rule.help.endswith(".")
        assert "\n" not in rule.help


def test_json_there_and_back() -> None:
    options = {name: good_values(rule)[-1] for name, (_, _, rule) in DECLARED.items()}
    for settings in (Settings(), Settings.from_options(**options)):
        assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_json_of_unknown_settings_is_refused() -> None:
    values = Settings().to_json()
    values["listing"]["colour"] = "red"
    with pytest.raises(SettingError, match="There is no setting 'colour'"):
        Settings.from_json(values)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().listing.limit = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", DECLARED)
def test_identity_changes_with_what_shapes_the_features_and_nothing_else(name: str) -> None:
    _, default, rule = DECLARED[name]
    values = [*good_values(rule), *(["another"] if rule.kind is str else [])]
    other = next(value for value in values if value != default)
    changed = Settings.from_options(**{name: other})
    assert (changed.identity() != Settings().identity()) == rule.identity


def test_resources_are_no_identity() -> None:
    own = {"workers", "memory_bytes", "timeout_seconds", "max_failures", "anonymous", "allow_private_hosts"}
    own |= {"model", "size", "alpha", "weights"}  # the plan's backbone says what they led to
    assert {name for name, (_, _, rule) in DECLARED.items() if not rule.identity} == own
    assert set(Settings().identity()) == set(DECLARED) - own


def test_a_hung_worker_is_given_more_time_than_a_hung_read() -> None:
    for seconds in (0.1, 60.0, 86_400.0):
        images = Settings.from_options(timeout_seconds=seconds).images
        assert images.silence_seconds > images.timeout_seconds


def test_nearest_names_at_most_three() -> None:
    assert nearest("aaa", ["aaab", "aaac", "aaad", "aaae"]).count("'") == 6
    assert nearest("q", ["aaab"]) == "."


def test_available_cores_is_what_this_process_may_use() -> None:
    assert available_cores() >= 1
