"""Sources to tokenised stores: in order, counted, cached by what they depend on, in memory that does not grow."""

from __future__ import annotations

import ast
import concurrent.futures.process
import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import TEMPLATES, TEXT, chat, job_data, tiny_tokenizer, write_jsonl
from velocity.config.training import TrainingJob
from velocity.data import prepare, sources
from velocity.data.prepare import Preparation
from velocity.data.store import SequenceStore
from velocity.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds model/ with a tokenizer, which is all of a model that data need."""
    folder = tmp_path_factory.mktemp("prepare")
    tiny_tokenizer("smollm2").save_pretrained(str(folder / "model"))
    return folder


def preparation(
    folder: Path, tmp_path: Path, *, task: str = "pretrain", preference: Any = None, **data: Any
) -> Preparation:
    values = {**job_data(folder), "task": task, "preference": preference}
    values["data"] = {**values["data"], "cache": str(tmp_path / "cache"), "sequence_length": 64, **data}
    return Preparation(
        TrainingJob.model_validate({**values, "batch": {"rows": 1}}), folder / "model", lambda text: None
    )


def prepared(folder: Path, tmp_path: Path, **settings: Any) -> SequenceStore:
    made = preparation(folder, tmp_path, **settings)
    return made.source(made.job.data.train[0])


def refused(folder: Path, tmp_path: Path, **settings: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        prepared(folder, tmp_path, **settings)
    assert not [path for path in (tmp_path / "cache" / "sequences").glob("*") if path.is_dir()], "nothing half-written"
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def decoded(store: SequenceStore) -> list[str]:
    tokenizer = tiny_tokenizer("smollm2")
    return [tokenizer.decode(store[index].ids[:-1]) for index in range(len(store))]


@pytest.mark.parametrize("processes", [1, 3])
def test_sequences_stand_in_the_order_of_the_files_lines_whoever_encoded_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 5)
    # long and short texts in turn: a chunk that is encoded later is often finished sooner
    texts = [f"text {i} " + "x" * (40 if (i // 5) % 2 else 1) for i in range(53)]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": text} for text in texts[:31]])
    write_jsonl(tmp_path / "data" / "b.jsonl", [{"text": text} for text in texts[31:]])
    store = prepared(folder, tmp_path, train=str(tmp_path / "data"), processes=processes)
    assert decoded(store) == texts
    places = [store.place(index).replace(f"{tmp_path}/data/", "") for index in range(53)]
    assert places == [f"a.jsonl:{i}" for i in range(1, 32)] + [f"b.jsonl:{i}" for i in range(1, 23)]


def test_a_second_time_the_cache_is_found_and_the_tokenizer_is_not_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "some text"}])
    first = prepared(folder, tmp_path, train=str(path))
    monkeypatch.setattr(prepare, "load_tokenizer", lambda *_, **__: pytest.fail("the tokenizer is loaded again"))
    again = prepared(folder, tmp_path, train=str(path))
    assert again.folder == first.folder
    for harmless in ({"processes": 2}, {"packing": False}, {"train": {"path": str(path), "weight": 3}}):
        assert prepared(folder, tmp_path, **{"train": str(path), **harmless}).folder == first.folder


CHANGES: dict[str, dict[str, Any]] = {
    "sequence_length": {"sequence_length": 32},
    "on_bad_record": {"on_bad_record": "skip"},
    "on_long_chat": {"on_long_chat": "cut"},
    "template": {"chat_template": str(TEMPLATES / "qwen2_5.jinja")},
    "task": {"task": "sft"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_sequence_misses_the_cache(folder: Path, tmp_path: Path, name: str):
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b")])
    first = prepared(folder, tmp_path, train=str(path), sequence_length=128)
    changed = prepared(folder, tmp_path, **{"train": str(path), "sequence_length": 128, **CHANGES[name]})
    assert changed.folder != first.folder


def test_another_content_format_or_field_misses_the_cache(folder: Path, tmp_path: Path):
    path = tmp_path / "a.jsonl"

    def texts(source: dict[str, Any], *rows: Any) -> list[str]:
        write_jsonl(path, rows)
        return decoded(prepared(folder, tmp_path, train={"path": str(path), **source}))

    assert texts({}, {"text": "one", "body": "two"}) == ["one"]
    assert texts({}, {"text": "six", "body": "two"}) == ["six"]
    assert texts({"fields": {"text": "body"}}, {"text": "six", "body": "two"}) == ["two"]
    assert texts({"format": "text"}, {"text": "six", "body": "two"}) == ["six"]
    assert len(list((tmp_path / "cache" / "sequences").glob("*/stats.json"))) == 4


def test_two_splits_of_a_dataset_are_two_stores(folder: Path, tmp_path: Path):
    import datasets

    parts = {name: datasets.Dataset.from_list([{"text": f"of {name}"}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    for name in ("train", "test"):
        store = prepared(folder, tmp_path, train={"path": str(tmp_path / "saved"), "split": name})
        assert decoded(store) == [f"of {name}"]


def test_another_tokenizer_misses_the_cache(folder: Path, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "some text"}])
    first = prepared(folder, tmp_path, train=str(path))
    shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "model")
    tiny_tokenizer("llama3", add_bos=True).save_pretrained(str(tmp_path / "other" / "model"))
    other = prepared(tmp_path / "other", tmp_path, train=str(path))
    assert other.folder != first.folder
    assert other[0].ids[0] == tiny_tokenizer("llama3").bos_token_id


def test_a_store_counts_what_it_holds(folder: Path, tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    rows = [chat("a", "b"), chat("a", "x" * 200), chat("a", "b", "c", "d")]
    path.write_bytes(gzip.compress(b"\n".join([*(json.dumps(row).encode() for row in rows), b"", b""])))
    store = prepared(folder, tmp_path, task="sft", train=str(path), on_long_chat="cut", sequence_length=128)
    assert len(store) == 3
    assert {name: store.stats[name] for name in ("records", "sequences", "rejected", "too_long", "cut")} == {
        "records": 3, "sequences": 3, "rejected": 0, "too_long": 0, "cut": 1,
    }  # fmt: skip
    assert store.stats["tokens"] == int(store.lengths.sum()) == sum(len(store[i].ids) for i in range(3))
    assert store.stats["trained"] == sum(int(store[i].trained.sum()) for i in range(3))


def test_a_line_that_is_not_json_is_refused_with_file_and_line(folder: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "torn\n')
    assert refused(folder, tmp_path, train=str(tmp_path / "a.jsonl")) == [
        "not valid JSON: Invalid control character at: line 1 column 15 (char 14)",
        "  where: a.jsonl:3",
        "  fix:   mend the record, or set data.on_bad_record: skip",
    ]


@pytest.mark.parametrize(
    ("line", "what", "field"),
    [
        ('{"text": 5}', "'text' is int, not text", "text"),
        ('{"messages": [{"role": "user", "content": 5}]}', "content is int, not text", "messages[0].content"),
        ("[1]", "a record is a JSON object, not list", ""),
        ('{"text": "\\ud800"}', "'\\ud800' at character 0 is no character", "text"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth exceeded", ""),
        ("\x80", "not valid JSON: 'utf-8' codec can't decode byte", ""),
    ],
)
def test_a_bad_record_is_refused_with_file_line_and_field(
    folder: Path, tmp_path: Path, line: str, what: str, field: str
):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + line.encode("latin-1") + b"\n")
    said = refused(folder, tmp_path, train=str(tmp_path / "a.jsonl"))
    assert said[0].startswith(what)
    assert said[1] == "  where: a.jsonl:2" + (f" field {field}" if field else "")
    assert len(said) == 3


def test_bad_records_are_skipped_counted_and_written_down_where_the_job_says_so(folder: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nno json\n{"text": 5}\n{"text": "two"}\n')
    store = prepared(folder, tmp_path, train=str(tmp_path / "a.jsonl"), on_bad_record="skip")
    assert decoded(store) == ["one", "two"]
    assert (store.stats["records"], store.stats["rejected"]) == (4, 2)
    rejected = [json.loads(line) for line in (store.folder / "rejected.jsonl").read_text().splitlines()]
    assert [(reject["line"], reject["field"]) for reject in rejected] == [(2, ""), (3, "text")]
    assert rejected[1]["reason"] == "'text' is int, not text"
    assert {reject["file"] for reject in rejected} == {str(tmp_path / "a.jsonl")}


LONG = [chat("a", "b"), chat("a", "x" * 200)]


def test_a_chat_that_is_too_long_ends_the_job_with_its_place_and_the_remedy(folder: Path, tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", LONG)
    for bad_records in ("error", "skip"):  # a long chat is no bad record: it has a setting of its own
        said = refused(folder, tmp_path, task="sft", train=str(tmp_path / "a.jsonl"), on_bad_record=bad_records,
                       sequence_length=128)  # fmt: skip
        assert said[0].startswith("the chat has ") and said[0].endswith(" tokens, data.sequence_length is 128")
        assert said[1:] == ["  where: a.jsonl:2 field messages",
                            "  fix:   raise data.sequence_length, or data.on_long_chat: cut or skip"]  # fmt: skip


def test_a_chat_that_is_too_long_is_skipped_and_counted_where_the_job_says_so(folder: Path, tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", LONG)
    store = prepared(
        folder, tmp_path, task="sft", train=str(tmp_path / "a.jsonl"), on_long_chat="skip", sequence_length=128
    )
    assert (len(store), store.stats["too_long"], store.stats["rejected"], store.stats["cut"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_data_set_is_refused(folder: Path, tmp_path: Path, content: str):
    (tmp_path / "a.jsonl").write_text(content)
    said = refused(folder, tmp_path, train=str(tmp_path / "a.jsonl"))
    assert said[:2] == ["no record to train on: the data set is empty", "  where: a.jsonl"]


def test_a_data_set_of_bad_records_alone_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("no\nno\n")
    said = refused(folder, tmp_path, train=str(tmp_path / "a.jsonl"), on_bad_record="skip")
    assert said[0] == "no record to train on: 2 records were rejected"


def test_a_file_that_is_torn_leaves_nothing_behind(folder: Path, tmp_path: Path):
    rows = b"".join(b'{"text": "%d"}\n' % i for i in range(20_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-99])
    said = refused(folder, tmp_path, train=str(tmp_path / "a.jsonl.gz"))
    assert said[0].startswith("cannot read the file") and said[1] == "  where: a.jsonl.gz"


def test_a_path_that_is_neither_a_file_nor_a_dataset_of_the_hub_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    said = refused(folder, tmp_path, train="corpus/chats")
    assert said[0].startswith("'corpus/chats' is no file here, and as a dataset of the hub it cannot be read")


PAIR = {"prompt": "What is it?", "chosen": "A flaw.", "rejected": "A feature."}
KTO = {"kind": "kto"}


def answers_in(store: SequenceStore) -> list[list[str]]:
    """Of every sequence, the text of its answers."""
    tokenizer, found = tiny_tokenizer("smollm2"), []
    for index in range(len(store)):
        prompt, first, second = store[index].parts
        parts = np.split(store[index].ids, [prompt, prompt + first])[1:]
        found.append([tokenizer.decode(part) for part in parts[: 2 if second else 1]])
    return found


def test_pairs_are_stored_with_both_answers_and_counted_as_one_sequence_each(folder: Path, tmp_path: Path):
    rows = [PAIR, {**PAIR, "rejected": [{"role": "assistant", "content": "No."}], "system": "Be short."}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    store = prepared(folder, tmp_path, task="preference", train=str(path), sequence_length=256)
    assert answers_in(store) == [["A flaw.<|im_end|>", "A feature.<|im_end|>"], ["A flaw.<|im_end|>", "No.<|im_end|>"]]
    assert [store.stats[name] for name in ("records", "sequences", "rejected")] == [2, 2, 0]
    assert store.stats["tokens"] == sum(map(sum, store.parts_N3.tolist()))
    assert store.stats["trained"] == int(store.parts_N3[:, 1:].sum())


def test_for_kto_a_pair_is_two_sequences_of_one_line_and_a_table_of_feedback_one_a_row(folder: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", [PAIR])
    (tmp_path / "data" / "b.csv").write_text("prompt,completion,label\nWhy?,So.,True\nWhy?,No.,False\nWhy?,Hm.,0\n")
    train = str(tmp_path / "data")
    store = prepared(folder, tmp_path, task="preference", preference=KTO, train=train, sequence_length=256)
    answers = ["A flaw.", "A feature.", "So.", "No.", "Hm."]
    assert answers_in(store) == [[f"{answer}<|im_end|>"] for answer in answers]
    assert [store[index].desirable for index in range(5)] == [True, False, True, False, False]
    places = [store.place(index).removeprefix(f"{train}/") for index in range(5)]
    assert places[:2] == ["a.jsonl:1", "a.jsonl:1"] and len(set(places)) == 4
    assert (store.stats["records"], store.stats["sequences"]) == (4, 5)


PLAIN = "chat, prompt_completion, text"


@pytest.mark.parametrize(
    ("task", "preference", "row", "said"),
    [
        ("sft", None, PAIR, "a preference record is nothing that this task trains on; it takes " + PLAIN),
        ("pretrain", None, PAIR, "a preference record is nothing that this task trains on; it takes " + PLAIN),
        ("preference", None, chat("a", "b"), "a chat record is nothing that this task trains on; it takes preference"),
        ("preference", KTO, {"text": "a"},
         "a text record is nothing that this task trains on; it takes preference, feedback"),
        ("preference", None, {"prompt": "a", "completion": "b", "label": 1},
         "a feedback record is nothing that this task trains on; it takes preference"),
    ],
)  # fmt: skip
def test_a_record_of_another_task_is_refused_with_its_place(
    folder: Path, tmp_path: Path, task: str, preference: Any, row: Any, said: str
):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    lines = refused(folder, tmp_path, task=task, preference=preference, train=str(path), sequence_length=256)
    assert lines[:2] == [said, "  where: a.jsonl:1"]
    assert len(lines) == 3


@pytest.mark.parametrize("extra", [{"chosen": "a", "rejected": "b"}, {"prompt": "a", "completion": "b", "label": 0}])
def test_fields_of_another_tasks_format_do_not_hide_those_of_this_one(
    folder: Path, tmp_path: Path, extra: dict[str, Any]
):
    path = write_jsonl(tmp_path / "a.jsonl", [{**chat("Why?", "So."), **extra}, {**PAIR, **chat("Why?", "So.")}])
    assert prepared(folder, tmp_path, task="sft", train=str(path), sequence_length=256).stats["rejected"] == 0
    rows = [{**PAIR, **chat("Why?", "So."), "text": "a"}]
    pairs = write_jsonl(tmp_path / "b.jsonl", rows)
    store = prepared(folder, tmp_path, task="preference", train=str(pairs), sequence_length=256)
    assert store[0].parts[2] > 0


@pytest.mark.parametrize(
    ("row", "said", "field"),
    [
        ({**PAIR, "rejected": "A flaw."}, "the chosen and the rejected answer are the same", "chosen"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "'label' is 'maybe'; true for a desirable", "label"),
        ({**PAIR, "prompt": None}, "'prompt' is NoneType, not text", "prompt"),
    ],
)
def test_a_pair_or_feedback_that_is_none_is_refused_with_file_line_and_field(
    folder: Path, tmp_path: Path, row: Any, said: str, field: str
):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR, row])
    lines = refused(folder, tmp_path, task="preference", preference=KTO, train=str(path), sequence_length=256)
    assert lines[0].startswith(said)
    assert lines[1] == f"  where: a.jsonl:2 field {field}"


LONG_PAIR = {**PAIR, "chosen": "x" * 300}


def test_a_pair_that_is_too_long_ends_the_job_is_skipped_or_is_cut_as_the_job_says(folder: Path, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR, LONG_PAIR])
    settings: dict[str, Any] = {"task": "preference", "train": str(path), "sequence_length": 128}
    said = refused(folder, tmp_path, **settings)
    assert said[0].startswith("the prompt with its longer answer has ")
    assert said[1:] == ["  where: a.jsonl:2 field prompt",
                        "  fix:   raise data.sequence_length, or data.on_long_chat: cut or skip"]  # fmt: skip
    skipped = prepared(folder, tmp_path, **settings, on_long_chat="skip")
    assert [skipped.stats[name] for name in ("sequences", "rejected", "too_long", "cut")] == [1, 1, 1, 0]
    cut = prepared(folder, tmp_path, **settings, on_long_chat="cut")
    assert [cut.stats[name] for name in ("sequences", "rejected", "too_long", "cut")] == [2, 0, 0, 1]
    prompt, chosen, rejected = cut.parts_N3.tolist()[1]
    assert prompt + chosen == 128 and rejected < chosen


def test_a_pair_whose_answers_are_the_same_once_they_are_cut_is_left_out_and_counted(folder: Path, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**LONG_PAIR, "rejected": "x" * 301}, PAIR])
    store = prepared(folder, tmp_path, task="preference", train=str(path), sequence_length=128, on_long_chat="cut")
    assert [store.stats[name] for name in ("sequences", "rejected", "too_long", "cut")] == [1, 1, 1, 0]
    [reject] = (store.folder / "rejected.jsonl").read_text().splitlines()
    assert json.loads(reject)["reason"] == "cut to 128 tokens, the two answers are the same"


def imported(module: str) -> set[str]:
    """The modules of velocity.data that a module of it imports, and those that these import."""
    tree = ast.parse((ROOT / "src" / "velocity" / "data" / f"{module}.py").read_text("utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    direct = {name.removeprefix("velocity.data.") for name in names if name.startswith("velocity.data.")}
    return direct.union(*(imported(name) for name in direct))


def test_every_module_that_makes_a_sequence_of_a_row_is_a_part_of_the_caches_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    named = {module.__name__.rpartition(".")[2] for module in prepare.CODE}
    makers = {"sources", "parse", "encode", "store"}
    not_of_a_row = {"fingerprint"}  # it names what is made
    assert named == makers.union(*map(imported, makers)) - not_of_a_row
    path, code = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}]), prepare.CODE
    folders = {prepared(folder, tmp_path, train=str(path)).folder}
    for module in code:
        monkeypatch.setattr(prepare, "CODE", tuple(other for other in code if other is not module))
        folders.add(prepared(folder, tmp_path, train=str(path)).folder)
    assert len(folders) == 1 + len(code)


def test_objectives_over_pairs_share_a_store_and_kto_has_its_own(folder: Path, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR])
    folders = {
        kind: prepared(
            folder, tmp_path, task="preference", preference={"kind": kind}, train=str(path), sequence_length=256
        ).folder
        for kind in ("dpo", "orpo", "simpo", "cpo", "kto")
    }
    assert folders["dpo"] == folders["orpo"] == folders["simpo"] == folders["cpo"] != folders["kto"]


def test_the_same_records_elsewhere_and_later_are_the_same_content(folder: Path, tmp_path: Path):
    def content(name: str, *rows: Any, **settings: Any) -> str:
        path = write_jsonl(tmp_path / name, rows)
        os.utime(path, (len(name), len(name)))
        arguments = {"task": "preference", "train": str(path), "sequence_length": 256, **settings}
        return str(prepared(folder, tmp_path, **arguments).stats["content"])

    other = {**PAIR, "rejected": "No."}
    first = content("a.jsonl", PAIR, other)
    assert content("elsewhere/b.jsonl", PAIR, other) == first
    assert content("id.jsonl", {**PAIR, "id": 7}, other) == first, "a field that nothing is made of"
    assert content("order.jsonl", other, PAIR) != first
    template = str(TEMPLATES / "qwen2_5.jinja")
    assert content("a.jsonl", PAIR, other, chat_template=template) != first


PREPARE = """
    import json, resource, sys
    from pathlib import Path
    from tokenizers import Tokenizer
    from velocity.config.training import TrainingJob
    from velocity.data.prepare import Preparation

    class Fast:
        is_fast, eos_token_id, bos_token_id, all_special_ids, added_tokens_decoder = True, 0, None, [0], {}
        backend_tokenizer = Tokenizer.from_file(sys.argv[2])

    job = TrainingJob.model_validate(json.loads(sys.argv[1]))
    made = Preparation(job, Path(sys.argv[2]).parent, lambda text: None)
    made._tokenizer = Fast()  # without transformers, which is larger than all that is measured here
    store = made.source(job.data.train[0])
    # not ru_maxrss of ourselves: that begins with the peak of the process that started us
    [own] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([store.stats["tokens"], int(own), child]))
"""


def word_tokenizer(path: Path) -> Path:
    """Make `path` a tokenizer of whole words, several times as fast as one of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["</s>", *dict.fromkeys(TEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path.parent.mkdir(exist_ok=True)
    tokenizer.save(str(path))
    return path


def peak_kib(folder: Path, tmp_path: Path, copies: int) -> tuple[int, int, int]:
    """Tokens, and the peak of the preparing process and of the largest tokenising one."""
    path = tmp_path / f"{copies}.jsonl"
    row = json.dumps({"text": TEXT * 5}) + "\n"
    path.write_text(row * copies)
    job = job_data(folder)
    job["task"] = "pretrain"
    job["data"].update(train=str(path), cache=str(tmp_path / "cache"), processes=2, sequence_length=512)
    tokenizer = word_tokenizer(tmp_path / "model" / "tokenizer.json")
    arguments = [sys.executable, "-c", textwrap.dedent(PREPARE), json.dumps(job), str(tokenizer)]
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    tokens, own, largest_child = json.loads(answer.stdout)
    return tokens, own, largest_child


def test_memory_stays_flat_while_the_corpus_grows_tenfold(folder: Path, tmp_path: Path):
    copies = 3_000_000 // (5 * len(TEXT))  # 3 MB of text, then 30
    tokens, own, child = peak_kib(folder, tmp_path, copies)
    more_tokens, more_own, more_child = peak_kib(folder, tmp_path, 10 * copies)
    assert more_tokens > 9.9 * tokens
    assert more_own < 1.15 * own, f"{own} KiB, then {more_own}"
    assert more_child < 1.15 * child, f"{child} KiB, then {more_child}"


@pytest.mark.parametrize("moment", ["ProcessPoolExecutor._spawn_process", "_ExecutorManagerThread.start"])
def test_a_stop_while_the_pool_starts_is_a_stop_and_leaves_no_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """The executor keeps a thread that never ran: it cannot join it, nor tell its processes to leave."""
    owner, name = moment.split(".")
    proper = getattr(getattr(concurrent.futures.process, owner), name)

    def interrupted(self: object) -> None:
        if name == "_spawn_process":
            proper(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"concurrent.futures.process.{moment}", interrupted)
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, tmp_path, train=str(tmp_path / "train.jsonl"))
    assert multiprocessing.active_children() == before
