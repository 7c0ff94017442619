"""Rows of every format become prompts: their tokens, their names, what is refused and what is kept on disk.

Expected tokens are those of the tokenizer itself on a text that is written out on the page.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.generating import generate_job
from tests.making import TEMPLATES, chat, tiny_tokenizer, write_jsonl
from velocity.data.prompts import PromptStore, prepare_prompts, to_json
from velocity.errors import UserError

PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


class Place:
    """A folder with a tokenizer, and prompts made of rows."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.reports: list[str] = []
        (folder / "model").mkdir(exist_ok=True)
        tokenizer.save_pretrained(str(folder / "model"))

    def store(
        self, rows: Any = None, limit: int | None = None, source: Mapping[str, Any] | None = None, **data: Any
    ) -> PromptStore:
        """The prompts of a file with these rows, or this text; of the file as it is where there are none."""
        path = self.folder / "prompts.jsonl"
        if isinstance(rows, str):
            path.write_text(rows, "utf-8")
        elif rows is not None:
            write_jsonl(path, rows)
        changes = {"data.prompts": {"path": str(path), **(source or {})}}
        job = generate_job(self.folder, {**changes, **{f"data.{name}": value for name, value in data.items()}})
        return prepare_prompts(job, self.folder / "model", limit, self.reports.append)

    def texts(self, rows: Any, **source: Any) -> list[str]:
        """Each prompt's tokens as text, special tokens too."""
        store = self.store(rows, source=source)
        return [self.tokenizer.decode(store.ids(index)) for index in range(len(store))]

    def refused(self, rows: Any, source: Mapping[str, Any] | None = None, **settings: Any) -> list[str]:
        """What, where and the remedy of the error."""
        with pytest.raises(UserError) as caught:
            self.store(rows, source=source, **settings)
        (problem,) = caught.value.problems
        return [problem.what, problem.where.replace(f"{self.folder}/", ""), problem.fix]


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Place:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    return Place(tmp_path, tokenizer)


USER = "[user] Why?\n[assistant] "
SYSTEM = "[system] Be brief.\n"
FORMATS: dict[str, tuple[Any, str]] = {
    "a text, which is gone on with": ({"text": "Once upon"}, "Once upon"),
    "a text that looks like a special token": ({"text": "<|im_end|>"}, "<|im_end|>"),
    "a chat that ends with the user": (chat("Why?"), USER),
    "a chat, without its last answer": (chat("Why?", "Because."), USER),
    "a chat of several turns": (chat("A", "B", "Why?", "C"), f"[user] A\n[assistant] B\n{USER}"),
    "a chat with two answers at its end": (
        {"messages": [*chat("Why?", "So.")["messages"], {"role": "assistant", "content": "And so."}]}, USER,
    ),
    "a chat with a system turn": (chat("Why?", "So.", system="Be brief."), SYSTEM + USER),
    "a chat in the words of ShareGPT": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, USER,
    ),
    "a prompt": ({"prompt": "Why?"}, USER),
    "a prompt with its completion": ({"prompt": "Why?", "completion": "So."}, USER),
    "a prompt of messages": ({"prompt": chat("A", "B", "Why?")["messages"]}, f"[user] A\n[assistant] B\n{USER}"),
    "a prompt with a system field": ({"prompt": "Why?", "system": "Be brief."}, SYSTEM + USER),
    "a prompt with an empty system field": ({"prompt": "Why?", "system": ""}, USER),
    "an instruction": ({"instruction": "Why?", "output": "So."}, USER),
    "an instruction with an input": ({"instruction": "Add", "input": "1 2"}, "[user] Add\n\n1 2\n[assistant] "),
    "an instruction with an empty input": ({"instruction": "Why?", "input": "", "output": "So."}, USER),
    "an instruction with a system field": ({"instruction": "Why?", "system": "Be brief."}, SYSTEM + USER),
    "a preference with its prompt": ({"prompt": "Why?", "chosen": "A", "rejected": "B"}, USER),
    "a preference of two conversations": (
        {"chosen": chat("Why?", "A")["messages"], "rejected": chat("Why?", "B")["messages"]}, USER,
    ),
    "feedback": ({"prompt": "Why?", "completion": "So.", "label": False}, USER),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_of_a_row_that_training_reads_the_prompt_is_what_stands_before_the_last_answer(place: Place, name: str):
    row, expected = FORMATS[name]
    assert place.texts([row]) == [expected]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("text", {"text": "Why?", "prompt": "not this"}),
        ("chat", {**chat("Why?"), "prompt": "not this"}),
        ("prompt_completion", {"prompt": "Why?", "messages": "not these"}),
        ("preference", {"prompt": "Why?", "chosen": "A", "rejected": "B", "text": "not this"}),
        ("feedback", {"prompt": "Why?", "messages": "not these"}),
    ],
)
def test_a_format_that_is_named_is_taken_whatever_else_a_row_has(place: Place, form: str, row: dict[str, Any]):
    assert place.texts([row], format=form) == ["Why?" if form == "text" else USER]


def test_fields_that_have_other_names_are_found(place: Place):
    assert place.texts([{"question": "Why?", "prompt": "not this"}], fields={"prompt": "question"}) == [USER]
    assert place.texts([{"body": "Once"}], fields={"text": "body"}, format="text") == ["Once"]
    assert place.texts([{"q": "Why?", "role": "Be brief."}], fields={"prompt": "q", "system": "role"}) == [
        SYSTEM + USER
    ]


def test_a_template_makes_a_prompt_of_any_fields(place: Place):
    rows = [{"name": "CWE-121", "n": 3, "tags": ["a", "b"]}, {"name": "XSS", "n": 1, "tags": []}]
    template = "{{ what }}: {{ n }}{% for tag in tags %} #{{ tag }}{% endfor %}"
    assert place.texts(rows, template=template, fields={"what": "name"}) == [
        "[user] CWE-121: 3 #a #b\n[assistant] ", "[user] XSS: 1\n[assistant] ",
    ]  # fmt: skip


def test_a_template_of_a_text_is_gone_on_with(place: Place):
    assert place.texts([{"a": "Once"}], template="{{ a }} upon", format="text") == ["Once upon"]


def test_a_field_that_a_template_needs_and_a_row_has_not_is_named_with_its_line(place: Place):
    what, where, fix = place.refused([{"name": "A"}, {"nam": "B"}], {"template": "What is {{ name }}?"})
    assert what == "the template cannot be filled: 'name' is undefined"
    assert where == "prompts.jsonl:2"
    assert "mend the row" in fix and "on_bad_record: skip" in fix


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{{ '%d' % n }}", {"n": "x"}),
        ("{{ n.deep.deeper }}", {"n": {}}),
        ("{{ n.__class__.__mro__ }}", {"n": 1}),
        ("{{ 1 // n }}", {"n": 0}),
        ("{% for i in range(n) %}{% endfor %}", {"n": 10**9}),
        ("{{ n }}", {"n": "  "}),
        ("{{ n }}", ["no", "object"]),
    ],
    ids=["a wrong type", "an absent field", "not allowed", "a division by 0", "too long a loop", "empty", "no object"],
)
def test_a_template_that_fails_on_a_row_names_the_row(place: Place, template: str, row: Any):
    _, where, fix = place.refused([{"n": 1}, row], {"template": template, "format": "text"}, on_bad_record="error")
    assert where.startswith("prompts.jsonl:")
    assert "mend the row" in fix


def test_a_template_that_is_none_is_refused_before_a_row_is_read(place: Place):
    what, where, _ = place.refused([{"name": "A"}], {"template": "What is {{ name?"})
    assert what.startswith("not a valid template: ")
    assert where == "data.prompts"


def test_a_text_begins_once_with_the_token_that_the_model_expects(tmp_path: Path):
    tokenizer = tiny_tokenizer("llama3", add_bos=True)
    place, begin = Place(tmp_path, tokenizer), tokenizer.bos_token_id
    rows = [{"text": "Once"}, {"prompt": "Why?"}]
    store = place.store(rows)
    for index in range(2):  # the template of Llama 3 writes its own
        assert store.ids(index)[0] == begin
        assert store.ids(index).count(begin) == 1
    assert store.ids(0) == tokenizer("Once")["input_ids"]


def test_a_tokenizer_that_adds_none_gets_none(place: Place):
    assert place.store([{"text": "Once"}]).ids(0) == place.tokenizer("Once", add_special_tokens=False)["input_ids"]


def test_a_prompt_for_a_model_without_chat_template_is_refused_with_both_remedies(tmp_path: Path):
    place = Place(tmp_path, tiny_tokenizer(None))
    assert place.texts([{"text": "Once"}]) == ["Once"], "a text needs none"
    what, where, _ = place.refused([{"text": "Once"}, {"prompt": "Why?"}])
    assert what.startswith("the tokenizer has no chat template")
    assert "data.chat_template" in what and "format: text" in what
    assert where == "prompts.jsonl:2 field messages"


def test_another_chat_template_takes_the_place_of_the_tokenizers_own(place: Place):
    other = str(TEMPLATES / "qwen2_5.jinja")
    store = place.store([{"prompt": "Why?"}], chat_template=other)
    assert "Qwen" in place.tokenizer.decode(store.ids(0))


def test_a_chat_template_that_renders_nothing_makes_no_prompt(place: Place, tmp_path: Path):
    (tmp_path / "empty.jinja").write_text("{% if false %}{{ messages }}{% endif %}")
    _, where, _ = place.refused([{"prompt": "Why?"}, {"prompt": "How?"}], chat_template=str(tmp_path / "empty.jinja"))
    assert where.startswith("prompts.jsonl:1")


WRONG: dict[str, tuple[Any, str, str]] = {
    "no object": ([1], "a record is a JSON object, not list", ""),
    "no field that tells": ({"name": "A"}, r"no prompt in the fields \['name'\]; name format", ""),
    "a prompt of another type": ({"prompt": 3}, "'prompt' is int, not text", " field prompt"),
    "an empty prompt": ({"prompt": " "}, "'prompt' is empty", " field prompt"),
    "a prompt that is answered": (
        {"prompt": chat("Why?", "So.")["messages"]}, "ends with a turn of the assistant", " field prompt"
    ),
    "only answers": ({"messages": [{"role": "assistant", "content": "So."}]}, "no turn that", " field messages"),
    "no messages": ({"messages": []}, "is not a list of messages", " field messages"),
    "an unknown role": (
        {"messages": [{"role": "bot", "content": "a"}]}, "role 'bot' is not", r" field messages\[0\].role",
    ),
    "half of a character": ({"prompt": "a\ud800"}, "character", ""),
    "half of a character beside the prompt": ({"prompt": "a", "note": "\ud800"}, "character", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_row_without_a_prompt_ends_the_job_with_its_line_and_field(place: Place, name: str):
    row, said, field = WRONG[name]
    what, where, fix = place.refused([{"prompt": "Why?"}, row])
    assert re.search(said, what)
    assert re.fullmatch(rf"prompts\.jsonl:2({field or '.*'})", where)
    assert fix == "mend the row, or set data.on_bad_record: skip"


@pytest.mark.parametrize("name", WRONG)
def test_a_row_without_a_prompt_can_be_left_out_and_is_written_down(place: Place, name: str):
    store = place.store([{"prompt": "A"}, WRONG[name][0], {"prompt": "B"}], on_bad_record="skip")
    assert [store.row(index) for index in range(len(store))] == [{"prompt": "A"}, {"prompt": "B"}]
    assert {key: store.stats[key] for key in ("records", "prompts", "rejected", "too_long", "cut")} == {
        "records": 3, "prompts": 2, "rejected": 1, "too_long": 0, "cut": 0,
    }  # fmt: skip
    (line,) = map(json.loads, (store.folder / "rejected.jsonl").read_text().splitlines())
    assert (line["file"], line["line"]) == (str(place.folder / "prompts.jsonl"), 2)
    assert line["reason"]


def test_a_line_that_is_no_json_is_named(place: Place):
    text = '{"prompt": "A"}\n\n{"prompt": "B"\n'
    what, where, _ = place.refused(text)
    assert what.startswith("not valid JSON") and where == "prompts.jsonl:3"
    store = place.store(text, on_bad_record="skip")
    assert (len(store), store.stats["records"], store.stats["rejected"]) == (1, 2, 1)


@pytest.mark.parametrize("text", ["", "\n\n", "{}\n"])
def test_a_file_without_a_prompt_is_refused(place: Place, text: str):
    what, where, _ = place.refused(text, on_bad_record="skip")
    assert what == "no prompt to answer: " + ("1 rows were rejected" if "{}" in text else "there is no row")
    assert where == "prompts.jsonl"
    assert not list((place.folder / "cache" / "prompts").glob("*/stats.json")), "and nothing is kept"


def test_a_prompt_that_is_too_long_ends_the_job_with_its_length_and_the_limit(place: Place):
    rows = [{"prompt": "A"}, {"prompt": "Why? " * 20}]
    length = len(place.tokenizer("[user] " + "Why? " * 20 + "\n[assistant] ")["input_ids"])
    what, where, fix = place.refused(rows, limit=length - 1)
    assert what == f"the prompt has {length} tokens, and {length - 1} are allowed"
    assert where == "prompts.jsonl:2 field prompt"
    for key in ("data.max_prompt_tokens", "generation.max_new_tokens", "data.on_long_prompt: cut or skip"):
        assert key in fix
    assert len(place.store(rows, limit=length)) == 2
    assert place.refused(rows, limit=length - 1, on_bad_record="skip") == [what, where, fix], "it is not a bad record"


def test_a_prompt_that_is_too_long_can_be_left_out(place: Place):
    store = place.store([{"text": "A"}, {"text": "Why? " * 20}, {"text": "B"}], limit=5, on_long_prompt="skip")
    assert [store.row(index)["text"] for index in range(len(store))] == ["A", "B"]
    assert (store.stats["rejected"], store.stats["too_long"]) == (1, 1)
    (line,) = map(json.loads, (store.folder / "rejected.jsonl").read_text().splitlines())
    assert line["line"] == 2 and "tokens, and 5 are allowed" in line["reason"]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_prompt_that_is_cut_loses_its_beginning_and_keeps_the_token_it_begins_with(tmp_path: Path, limit: int):
    tokenizer = tiny_tokenizer("llama3", add_bos=True)
    place, text = Place(tmp_path, tokenizer), "Check the length of every input."
    whole = tokenizer(text)["input_ids"]
    store = place.store([{"text": text}, {"text": "A"}], limit=limit, on_long_prompt="cut")
    assert store.ids(0) == [whole[0], *whole[len(whole) - limit + 1 :]][:limit]
    assert store.lengths[0] == limit
    assert store.row(0) == {"text": text}, "the row is as it was"
    assert store.stats["cut"] == (2 if limit == 1 else 1)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_prompt_without_such_a_token_keeps_its_end(place: Place, limit: int):
    whole = place.tokenizer("Check the length", add_special_tokens=False)["input_ids"]
    assert place.store([{"text": "Check the length"}], limit=limit, on_long_prompt="cut").ids(0) == whole[-limit:]


def names(store: PromptStore) -> dict[str, list[str]]:
    """Ids of the rows by their text, in order."""
    found: dict[str, list[str]] = {}
    for index in range(len(store)):
        found.setdefault(json.dumps(store.row(index)), []).append(store.id(index))
    return found


def test_a_rows_name_follows_from_its_content_wherever_it_stands_and_whatever_is_beside_it(place: Place):
    rows = [{"prompt": letter, "number": number} for number, letter in enumerate("ABCDE")]
    one = names(place.store(rows))
    assert len({name for found in one.values() for name in found}) == 5
    assert names(place.store(rows[::-1])) == one
    fewer = names(place.store(rows[1:3]))
    assert fewer == {row: one[row] for row in fewer}
    assert names(place.store([{"prompt": "A", "number": 9}])).items() & one.items() == set(), (
        "another field, another row"
    )


def test_rows_that_are_alike_have_numbers_behind_their_name(place: Place):
    store = place.store([{"prompt": "A"}, {"prompt": "B"}, {"prompt": "A"}, {"prompt": "A"}])
    name = store.id(0)
    assert [store.id(index) for index in (0, 2, 3)] == [name, f"{name}-1", f"{name}-2"]
    assert store.id(1) == names(place.store([{"prompt": "B"}]))['{"prompt": "B"}'][0]


def test_names_stay_the_same_for_every_machine_and_version(place: Place):
    # BLAKE2b of the row as JSON, 8 bytes: what is written down in completions of today has to be found tomorrow
    row = {"prompt": "Größe?", "n": 1}
    expected = hashlib.blake2b('{"prompt": "Größe?", "n": 1}'.encode(), digest_size=8).hexdigest()
    assert place.store([row]).id(0) == expected


def test_what_all_prompts_begin_with_is_known_and_never_a_whole_prompt(place: Place):
    ids = [place.store([{"text": text}]).ids(0) for text in ("Check the length", "Check the length of it")]
    assert ids[1][: len(ids[0])] == ids[0] and len(ids[0]) > 5
    store = place.store([{"text": "Check the length"}, {"text": "Check the length of it"}])
    assert store.shared == ids[0][:-1]
    assert place.store([{"text": "Check the length"}] * 3).shared == ids[0][:-1]
    assert place.store([{"text": "Check the length"}]).shared == ids[0][:-1]


def test_a_beginning_of_few_tokens_is_not_kept_apart(place: Place):
    assert place.store([{"text": "abc"}, {"text": "xyz"}]).shared == []
    assert place.store([{"text": "Check the length"}, {"text": "Size"}]).shared == []


def test_prompts_that_were_cut_share_what_is_left(place: Place):
    rows = [{"text": f"{letter} is it? Check the length of it." + end} for letter, end in (("A", " 1"), ("B", " 2"))]
    store = place.store(rows, limit=12, on_long_prompt="cut")
    assert store.shared and all(store.ids(index)[: len(store.shared)] == store.shared for index in range(2))


def test_values_that_json_does_not_know_become_what_it_knows(place: Place):
    values = {
        "prompt": ["Why?", "How?"],
        "score": [float("nan"), 1.5],
        "deep": [{"a": [float("inf"), 1.0]}, {"a": []}],
        "when": [datetime.datetime(2024, 2, 29, 12, 30), None],
        "day": [datetime.date(2024, 2, 29), None],
        "price": [decimal.Decimal("1.10"), None],
        "blob": [b"\x00\xff", None],
    }
    path = place.folder / "prompts.parquet"
    pyarrow.parquet.write_table(pa.table(values), path)
    store = place.store(source={"path": str(path)})
    assert store.row(0) == {
        "prompt": "Why?", "score": None, "deep": {"a": [None, 1.0]}, "when": "2024-02-29 12:30:00",
        "day": "2024-02-29", "price": "1.10", "blob": "b'\\x00\\xff'",
    }  # fmt: skip
    assert store.row(1)["score"] == 1.5


def test_a_value_that_is_no_number_is_null_wherever_it_stands():
    nan = float("nan")
    assert json.loads(to_json({"a": nan, "b": [nan, {"c": -nan}], "d": (1.0, nan)})) == {
        "a": None, "b": [None, {"c": None}], "d": [1.0, None],
    }  # fmt: skip
    assert to_json({"a": "日"}) == '{"a": "日"}'


@pytest.mark.parametrize("rows", [1, 511, 512, 513, 1500])
def test_every_prompt_is_found_in_a_store_of_several_chunks(place: Place, rows: int):
    store = place.store([{"text": f"number {number}"} for number in range(rows)])
    assert len(store) == rows == len(store.lengths)
    for index in {0, rows // 2, rows - 1, min(511, rows - 1), min(512, rows - 1)}:
        assert store.row(index) == {"text": f"number {index}"}
        assert place.tokenizer.decode(store.ids(index)) == f"number {index}"
        assert store.lengths[index] == len(store.ids(index))
    assert store.stats["tokens"] == int(store.lengths.sum())


def test_several_sources_stand_one_behind_the_other_each_with_its_own_template(place: Place):
    write_jsonl(place.folder / "a.jsonl", [{"q": "A"}, {"q": "B"}])
    (place.folder / "b.csv").write_text("word,extra\nC,1\nD,2\n")
    sources = [
        {"path": str(place.folder / "b.csv"), "template": "{{ word }}{{ extra }}", "format": "text"},
        {"path": str(place.folder / "a.jsonl"), "fields": {"prompt": "q"}},
    ]
    job = generate_job(place.folder, {"data.prompts": sources})
    store = prepare_prompts(job, place.folder / "model", None, place.reports.append)
    texts = [place.tokenizer.decode(store.ids(index)) for index in range(4)]
    assert texts == ["C1", "D2", "[user] A\n[assistant] ", "[user] B\n[assistant] "]
    assert store.row(0) == {"word": "C", "extra": "1"}
    assert place.reports[-1].endswith("4 prompts")


def test_prompts_are_found_again_and_made_anew_where_anything_of_them_changed(place: Place, tmp_path: Path):
    rows = [{"prompt": "Why?"}, {"prompt": "How? " * 9}]
    first = place.store(rows, limit=99)
    place.reports.clear()
    assert place.store(rows, limit=99).folder == first.folder
    assert place.reports == [], "nothing was read again"
    (tmp_path / "other.jinja").write_text(PLAIN + " ")
    ways: Sequence[Callable[[], PromptStore]] = (
        lambda: place.store(limit=98),
        lambda: place.store(limit=99, source={"template": "{{ prompt }}"}),
        lambda: place.store(limit=99, source={"format": "prompt_completion"}),
        lambda: place.store(limit=99, chat_template=str(tmp_path / "other.jinja")),
        lambda: place.store(limit=99, on_long_prompt="cut"),
        lambda: place.store(limit=99, on_bad_record="skip"),
        lambda: place.store([*rows, {"prompt": "When?"}], limit=99),
    )
    folders = [way().folder for way in ways]
    assert len({first.folder, *folders}) == 8
    assert PromptStore(first.folder).row(0) == rows[0], "and the first is as it was"


def test_a_store_that_was_not_finished_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch):
    def killed(value: Any) -> str:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("velocity.data.prompts.to_json", killed)
        with pytest.raises(KeyboardInterrupt):
            place.store([{"prompt": "Why?"}])
    assert not [path for path in (place.folder / "cache" / "prompts").iterdir() if path.is_dir()]
    assert len(place.store()) == 1
