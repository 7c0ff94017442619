"""Reading YAML with line numbers, overriding by dotted keys, and errors that name the place and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Discriminator, PositiveInt, Tag, model_validator

from velocity.config.base import Config, apply_override, read_yaml, validate
from velocity.errors import UserError


class Near(Config):
    kind: Literal["near"] = "near"
    distance: float = 1.0


class Far(Config):
    kind: Literal["far"]
    journey_days: PositiveInt = 1


def to_mapping(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class Place(Config):
    path: str
    weight: float = 1.0


class Trip(Config):
    name: str
    seats: PositiveInt | Literal["auto"] = "auto"
    stops: tuple[Annotated[Place, BeforeValidator(to_mapping)], ...] = ()
    home: Annotated[Place, BeforeValidator(to_mapping)] | None = None
    where: Annotated[Annotated[Near, Tag("near")] | Annotated[Far, Tag("far")], Discriminator("kind")] = Near()

    @model_validator(mode="after")
    def _seats_are_even(self) -> Trip:
        if isinstance(self.seats, int) and self.seats % 2:
            raise ValueError(f"seats={self.seats} is odd; use {self.seats + 1}")
        return self


def read(folder: Path, text: str, *overrides: str) -> Trip:
    (folder / "trip.yaml").write_text(text)
    data, mark = read_yaml(folder / "trip.yaml")
    for override in overrides:
        apply_override(data, mark, override)
    return validate(Trip, data, mark)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """What the error says: each problem's lines, without the folder."""
    with pytest.raises(UserError) as caught:
        read(folder, text, *overrides)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_name(tmp_path: Path):
    assert problems(tmp_path, "name: a\n\nseatz: 2\n") == [
        "unknown key 'seatz'\n  where: trip.yaml:3\n  fix:   did you mean 'seats'?"
    ]


def test_an_unknown_key_like_no_other_gets_the_list_of_those_that_are_known(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nhome: {path: x, zzz: 1}\n")
    assert problem == "unknown key 'home.zzz'\n  where: trip.yaml:2\n  fix:   known here: path, weight"


def test_a_misspelt_key_is_one_problem_though_the_right_one_is_missing(tmp_path: Path):
    assert problems(tmp_path, "nam: a\n") == ["unknown key 'nam'\n  where: trip.yaml:1\n  fix:   did you mean 'name'?"]


def test_a_key_of_another_variant_is_not_offered(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nwhere:\n  kind: near\n  journey_days: 3\n")
    assert problem == "unknown key 'where.journey_days'\n  where: trip.yaml:4\n  fix:   known here: distance, kind"


def test_a_missing_key_is_named_with_the_line_of_what_lacks_it(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nstops:\n  - here\n  - weight: 2\n")
    assert problem == "'stops.1.path' is missing\n  where: trip.yaml:4\n  fix:   add 'path: …'"


def test_a_key_that_stands_twice_is_refused_at_its_second_line(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nhome:\n  path: x\n  weight: 1\n  path: y\n")
    assert problem == "the key 'path' stands twice\n  where: trip.yaml:5\n  fix:   remove one of the two"


def test_a_wrong_type_is_named_with_its_value_and_line(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nwhere:\n  kind: far\n  journey_days: soon\n")
    assert "where.journey_days: " in problem and "(it is 'soon')" in problem and "trip.yaml:4" in problem


def test_a_value_that_fits_no_member_of_a_union_is_one_problem_under_the_name_in_the_file(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\nseats: 0\n")
    assert problem == "seats: Input should be greater than 0 (it is 0)\n  where: trip.yaml:2"


def test_keys_that_contradict_each_other_are_shown_where_the_first_one_stands(tmp_path: Path):
    [problem] = problems(tmp_path, "name: a\n\n\nseats: 3\n")
    assert problem == "seats=3 is odd\n  where: trip.yaml:4\n  fix:   use 4"


def test_every_problem_of_a_file_is_listed_at_once(tmp_path: Path):
    found = problems(tmp_path, "name: a\nseats: none\nhome: {path: x, wait: 2}\n")
    assert [problem.splitlines()[1] for problem in found] == ["  where: trip.yaml:2", "  where: trip.yaml:3"]


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "1.0e-5", "+1e-05", ".00001", "0.1e-4"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str):
    # YAML 1.1 itself reads 1e-5 as a word
    (tmp_path / "a.yaml").write_text(f"a: {text}\nb: [{text}]\n")
    data, _ = read_yaml(tmp_path / "a.yaml")
    assert data == {"a": 1e-5, "b": [1e-5]}


@pytest.mark.parametrize("text", ["e5", "1e", "1.0.0", "1-5", "v1e-5", "'1e-5'"])
def test_a_word_that_looks_like_a_number_stays_a_word(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    assert isinstance(read_yaml(tmp_path / "a.yaml")[0]["a"], str)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, value: str):
    assert "finite" in problems(tmp_path, f"name: a\nhome: {{path: x, weight: {value}}}\n")[0]


@pytest.mark.parametrize(
    ("content", "says", "where"),
    [
        (b"name: [\n", "not valid YAML", "trip.yaml:2"),
        (b"name: a\n\t- b\n", "not valid YAML", "trip.yaml:2"),
        (b"name: a\x07\n", "not valid YAML: unacceptable character #x0007", "trip.yaml"),
        (b"name: 2024-13-45\n", "not valid YAML: month must be in 1..12", "trip.yaml"),
        (b"name: !!python/name:os.system ''\n", "not valid YAML: could not determine a constructor", "trip.yaml:1"),
        (b"- name\n", "a job file is a mapping", "trip.yaml:1"),
        (b"", "a job file is a mapping", "trip.yaml:1"),
        (b"\xff\xfe\x00", "cannot read the job file", "trip.yaml"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused_with_its_line(
    tmp_path: Path, content: bytes, says: str, where: str
):
    (tmp_path / "trip.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "trip.yaml")
    [problem] = caught.value.problems
    assert problem.what.startswith(says)
    assert problem.where == str(tmp_path / where)
    assert len(str(problem).splitlines()) <= 3


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_job_file_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="cannot read the job file"):
        read_yaml(tmp_path / name)


def test_an_override_replaces_a_value_and_creates_the_sections_above_it(tmp_path: Path):
    trip = read(tmp_path, "name: a\nseats: 2\n", "seats=4", "where.kind=near", "where.distance=1e-3", "home.path=x y")
    assert (trip.seats, trip.where, trip.home) == (4, Near(distance=1e-3), Place(path="x y"))


def test_an_override_reaches_into_a_list(tmp_path: Path):
    trip = read(tmp_path, "name: a\nstops: [{path: x}, {path: y}]\n", "stops.1.weight=2.5")
    assert trip.stops == (Place(path="x"), Place(path="y", weight=2.5))


def test_an_override_below_a_word_keeps_the_path_that_the_word_is(tmp_path: Path):
    assert read(tmp_path, "name: a\nhome: x\n", "home.weight=2").home == Place(path="x", weight=2)


def test_an_override_below_a_word_in_a_list_keeps_its_path(tmp_path: Path):
    (tmp_path / "trip.yaml").write_text("stops: [a, b]\n")
    data, mark = read_yaml(tmp_path / "trip.yaml")
    apply_override(data, mark, "stops.1.weight=2")
    assert data == {"stops": ["a", {"path": "b", "weight": 2}]}


def test_an_override_below_the_word_auto_takes_its_place(tmp_path: Path):
    assert read(tmp_path, "name: a\nwhere: auto\n", "where.kind=near", "where.distance=2").where == Near(distance=2)


def test_an_override_may_be_a_whole_section(tmp_path: Path):
    trip = read(tmp_path, "name: a\n", "stops=[x, {path: y}]", "where={kind: far}", "name=a=b")
    assert (trip.stops, trip.where, trip.name) == ((Place(path="x"), Place(path="y")), Far(kind="far"), "a=b")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seats", "'seats' is neither a job file nor key.path=value"),
        ("=4", "'=4' is neither a job file nor key.path=value"),
        ("seats=[4", "the value of 'seats' is not valid YAML: [4"),
        ("name=2024-13-45", "the value of 'name' is not valid YAML: 2024-13-45"),
        ("stops.7.path=z", "'stops.7.path=z' names a place that the job file does not have"),
        ("stops.x.path=z", "'stops.x.path=z' names a place that the job file does not have"),
        ("stops.7=z", "'stops.7' does not lead to a value that can be set"),
        ("seatz=4", "unknown key 'seatz'"),
        ("stops.0.wait=4", "unknown key 'stops.0.wait'"),
        ("home={path: x, wait: 4}", "unknown key 'home.wait'"),
        ("seats=0", "seats: Input should be greater than 0 (it is 0)"),
    ],
)
def test_a_wrong_override_is_refused_and_shown_to_be_of_the_command_line(tmp_path: Path, override: str, says: str):
    text = "name: a\nstops:\n  - path: x\n"
    [problem] = problems(tmp_path, text, override)
    assert problem.splitlines()[:2] == [says, "  where: command line"]


def test_a_mark_is_that_of_the_nearest_written_value(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a:\n  - b: 1\n  - b: 2\n    c: 3\n")
    data, mark = read_yaml(tmp_path / "a.yaml")
    apply_override(data, mark, "a.1.b=4")
    places = {path: mark.find(path).where.rpartition("/")[2] for path in [("a",), ("a", 0, "b"), ("a", 1, "c")]}
    assert places == {("a",): "a.yaml:1", ("a", 0, "b"): "a.yaml:2", ("a", 1, "c"): "a.yaml:4"}
    assert mark.find(("a", 1, "b")).where == "command line"
    assert mark.find(("a", 0, "b", "not there")).where.endswith("a.yaml:2")
