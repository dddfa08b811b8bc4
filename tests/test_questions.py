"""Question sets: one form from every source, and nothing wrong gets in. All questions here are invented, but the pinned AIME set is counted."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_validate import evalspec
from mxfp4_validate.errors import UsageError
from mxfp4_validate.questions import examples, first, load
from mxfp4_validate.questions import files as files_module
from mxfp4_validate.questions.canonical import canonical, permutation, question, source_options

GSM8K, GPQA, AIME = (evalspec.load(name) for name in ("gsm8k", "gpqa_diamond", "aime25"))
SUMS = [{"question": f"What is {a} plus {a}?", "answer": f"Twice {a} is\n#### {2 * a:,}"} for a in (1, 20, 3000)]
CHOICES = [
    {
        "Question": f"Which of these is number {n}?",
        "Correct Answer": f"n{n}",
        **{f"Incorrect Answer {i}": f"m{n}{i}" for i in (1, 2, 3)},
        "Record ID": f"rec{n}",
    }
    for n in range(60)
]


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def as_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(("spec", "rows"), [(GSM8K, SUMS), (GPQA, CHOICES)], ids=["gsm8k", "gpqa"])
def test_every_kind_of_file_gives_the_same_set(tmp_path, spec, rows):
    """Same ids, same gold, same hash; rows in another order change the order and nothing else."""
    sets = [
        load(spec, jsonl(tmp_path / "a.jsonl", rows)),
        load(spec, as_csv(tmp_path / "a.csv", rows)),
        load(spec, as_parquet(tmp_path / "a.parquet", rows)),
        load(spec, jsonl(tmp_path / "b.jsonl", [{key: value.replace("\n", " \r\n") + " " for key, value in row.items()} for row in rows])),
    ]
    assert all(got.questions == sets[0].questions for got in sets)
    turned = load(spec, jsonl(tmp_path / "c.jsonl", rows[::-1]))
    assert turned.questions == sets[0].questions[::-1]
    assert {got.sha256 for got in (*sets, turned)} == {sets[0].sha256}
    assert sets[0].row_hashes() == turned.row_hashes()


def test_gsm8k_gold_is_what_follows_the_hashes(tmp_path):
    assert [item.gold for item in load(GSM8K, jsonl(tmp_path / "a.jsonl", SUMS)).questions] == ["2", "40", "6000"]


@pytest.mark.parametrize("names", [("problem", "expected_answer"), ("Question", "answer"), ("question", "Answer")])
def test_column_names_and_foreign_ids_do_not_matter(tmp_path, names):
    rows = [{names[0]: row["question"], names[1]: row["answer"], "id": f"x-{place}"} for place, row in enumerate(SUMS)]
    assert load(GSM8K, jsonl(tmp_path / "a.jsonl", rows)).questions == load(GSM8K, jsonl(tmp_path / "b.jsonl", SUMS)).questions


def test_a_local_set_of_another_size_is_a_note(tmp_path):
    got = load(GSM8K, jsonl(tmp_path / "a.jsonl", SUMS))
    assert got.notes == ("3 questions where gsm8k has 1319",)
    assert (got.suite, got.revision) == ("gsm8k", "")


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_lf_ends_a_line(tmp_path, odd):
    """Line separators of Unicode inside a string are text."""
    got = load(GSM8K, jsonl(tmp_path / "a.jsonl", [{"question": f"One{odd}two?", "answer": "2"}, {"question": "Three?", "answer": "3"}]))
    assert [item.gold for item in got.questions] == ["2", "3"]
    assert got.questions[0].text == f"One{odd}two?"


@pytest.mark.parametrize(
    ("spec", "rows", "said"),
    [
        (GSM8K, [SUMS[0], SUMS[1], SUMS[0]], r"a\.jsonl:3: the same question as .*a\.jsonl:1"),
        (GSM8K, [SUMS[0], SUMS[0] | {"answer": "#### 9"}], "the same question"),
        (GPQA, [CHOICES[0], CHOICES[0] | {"Correct Answer": "m01", "Incorrect Answer 1": "n0"}], "the same question"),
        (GSM8K, [{"question": "Why?", "answer": " "}], "'answer' is empty"),
        (GSM8K, [{"question": "Why?", "answer": "so\n#### "}], "not a number"),
        (GSM8K, [{"question": "Why?", "answer": "#### many"}], "'many' is not a number"),
        (GSM8K, [{"question": " ", "answer": "1"}], "'question' is empty"),
        (GSM8K, [{"question": "Why?"}], "no column 'answer' or"),
        (GPQA, [{"Question": "Why?", "Correct Answer": "x"}], "no column 'Incorrect Answer 1'"),
        (AIME, [{"problem": "Why?", "answer": "1000"}], "'1000' is not an integer from 0 to 999"),
        (AIME, [{"problem": "Why?", "answer": "3.5"}], "not an integer"),
        (GSM8K, [], "no rows"),
    ],
)
def test_bad_rows_are_refused_by_place(tmp_path, spec, rows, said):
    with pytest.raises(UsageError, match=said):
        load(spec, jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("336^\\circ", "336"), ("336^{\\circ}", "336"), ("336°", "336"), ("070", "70"), ("000", "0"), (0, "0"), ("$7$", "7"), (7.0, "7")],
)
def test_aime_gold(answer, gold):
    assert question({"question": "Why?", "answer": answer}, "aime25", "here").gold == gold


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.npy", "a.npz", "a.pt", "a.PT", "a.bin", "a.joblib"])
def test_files_that_could_run_code_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="can run code"):
        load(GSM8K, tmp_path / name)


def test_unreadable_files_are_named(tmp_path):
    for name, data, said in (
        ("a.zip", b"PK", "zip extension"),
        ("a.jsonl", b'{"question": "\xff"}', "not UTF-8 at byte 14"),
        ("b.jsonl", b'{"question": ', r"b\.jsonl:1: not a line of JSON"),
        ("c.jsonl", b"[1]", "a list; each line"),
        ("d.jsonl", b"[" * 100_000, r"d\.jsonl:1: not a line of JSON"),
        ("e.csv", b"question,answer\n1,2,3\n", "row 1 has more fields"),
        ("f.csv", b'question,answer\n"1,2\n', "line"),
        ("g.parquet", b"no such thing", "not a Parquet file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=said):
            load(GSM8K, tmp_path / name)
    with pytest.raises(UsageError, match="no such file"):
        load(GSM8K, tmp_path / "none.jsonl")


def test_sizes_are_capped(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", SUMS)
    packed = as_parquet(tmp_path / "a.parquet", SUMS)
    monkeypatch.setattr(files_module, "MOST", 2)
    for file in (path, packed):
        with pytest.raises(UsageError, match="3 rows, at most 2"):
            load(GSM8K, file)
    monkeypatch.setattr(files_module, "LARGEST", 10)
    with pytest.raises(UsageError, match="bytes, at most 10"):
        load(GSM8K, path)


def test_a_parquet_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    path = as_parquet(tmp_path / "a.parquet", [{"question": "x" * 100_000 + str(n), "answer": "1"} for n in range(30)])
    monkeypatch.setattr(files_module, "LARGEST", path.stat().st_size)
    with pytest.raises(UsageError, match="unpacks to"):
        load(GSM8K, path)


def test_the_pinned_aime_set_is_in_the_installed_wheel():
    """30 questions whose answers sum to 8344, under the hash that the eval pins."""
    got = load(AIME)
    assert len(got.questions) == 30
    assert sum(int(item.gold) for item in got.questions) == 8344
    assert got.sha256 == AIME.sha256
    assert got.source.startswith("sgl-eval ")
    assert not got.notes
    assert load(AIME, package="sgl-eval").questions == got.questions


def test_aime_from_a_file_keeps_the_ids_of_the_package(tmp_path):
    from importlib import resources

    text = resources.files("sgl_eval._vendored.nemo_skills.dataset.aime25").joinpath("test.txt").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    local = load(AIME, as_csv(tmp_path / "a.csv", [{"question": row["problem"], "answer": row["expected_answer"]} for row in rows]))
    assert local.questions == load(AIME).questions
    assert local.notes == ()
    changed = load(AIME, jsonl(tmp_path / "b.jsonl", [rows[0] | {"problem": rows[0]["problem"] + "!"}, *rows[1:]]))
    assert changed.questions[0].id != local.questions[0].id
    assert "pins" in changed.notes[0]


def test_a_package_with_another_set_is_an_error():
    with pytest.raises(UsageError, match="30 questions where aime25 has 29"):
        load(dataclasses.replace(AIME, questions=29))
    with pytest.raises(UsageError, match="pins ffff"):
        load(dataclasses.replace(AIME, sha256="ffff"))


@pytest.mark.parametrize("spec", [GSM8K, GPQA], ids=["gsm8k", "gpqa"])
def test_without_a_network_all_ways_are_named(monkeypatch, spec):
    def unreachable(*_arguments, **_named):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(UsageError, match=r"no route.*--questions FILE\.jsonl.*HF_HUB_OFFLINE") as error:
        load(spec)
    assert ("HF_TOKEN" in str(error.value)) == (spec is GPQA)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"'datasets' is not installed.*mxfp4-validate\[eval\]"):
        load(spec)
    with pytest.raises(UsageError, match=r"--questions FILE\.jsonl.*pip install sgl-eval"):
        load(AIME, package="other")


def test_the_hub_is_asked_for_one_commit(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        return CHOICES

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    spec = dataclasses.replace(GPQA, questions=len(CHOICES))
    got = load(spec)
    assert asked == [(("Idavidrein/gpqa", "gpqa_diamond"), {"split": "train", "revision": GPQA.source["revision"]})]
    assert got.questions == load(spec, jsonl(tmp_path / "a.jsonl", CHOICES)).questions
    assert got.revision == GPQA.source["revision"]
    assert load(spec, revision="a" * 40).revision == "a" * 40
    with pytest.raises(UsageError, match="60 questions where gpqa_diamond has 198"):
        load(GPQA)
    for moving in ("main", "v1", "a" * 39):
        with pytest.raises(UsageError, match="pins nothing"):
            load(spec, revision=moving)
    with pytest.raises(UsageError, match="no Hub source"):
        load(AIME, revision="a" * 40)


def test_a_limit_keeps_the_same_questions_from_every_order(tmp_path):
    one, two = load(GPQA, jsonl(tmp_path / "a.jsonl", CHOICES), limit=7), load(GPQA, jsonl(tmp_path / "b.jsonl", CHOICES[::-1]), limit=7)
    assert one.questions == two.questions[::-1]
    assert one.sha256 == two.sha256
    assert one.notes[-1] == "7 of 60 questions, those with the smallest ids"
    assert set(first(one, 3).questions) < set(one.questions)
    assert first(one, 7) is one
    with pytest.raises(UsageError, match="limit is 0"):
        load(GPQA, tmp_path / "a.jsonl", limit=0)


def test_options_are_ordered_by_id_and_gold_by_place(tmp_path):
    """All 24 orders come up about equally often, and always the same one for a question; the right option is where gold says."""
    for item, row in zip(load(GPQA, jsonl(tmp_path / "a.jsonl", CHOICES)).questions, CHOICES, strict=True):
        assert item.options["ABCD".index(item.gold)] == row["Correct Answer"]
        assert source_options(item) == (row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3)))
    counts = collections.Counter(permutation(f"gpqa-{n:010x}") for n in range(12_000))
    assert len(counts) == 24
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, one sigma is 22
    assert permutation("gpqa-0000000000") == (1, 2, 0, 3)  # frozen: another order would be another protocol


def test_options_of_the_same_text_are_kept_apart_by_place(tmp_path):
    rows = [
        {
            "Question": f"Why {n}?",
            "Correct Answer": "yes",
            "Incorrect Answer 1": "yes",
            "Incorrect Answer 2": "no",
            "Incorrect Answer 3": "no",
        }
        for n in range(40)
    ]
    got = load(GPQA, jsonl(tmp_path / "a.jsonl", rows))
    assert "options of the same text in 40 questions" in got.notes[0]
    assert all(permutation(item.id)["ABCD".index(item.gold)] == 0 for item in got.questions)


def test_examples_are_the_head_of_the_file_with_solutions(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", SUMS)
    assert examples(GSM8K, 2, path) == tuple((row["question"], row["answer"]) for row in SUMS[:2])
    with pytest.raises(UsageError, match="3 rows, and 4"):
        examples(GSM8K, 4, path)


@given(st.text())
def test_the_canonical_form_is_its_own(text):
    once = canonical(text)
    assert canonical(once) == once
    assert "\r" not in once


def test_specs_are_what_the_plan_says():
    """Margins, repeats and looks of the statistics; every file of an eval is there."""
    plans = {spec.name: (spec.questions, spec.repeats, spec.looks, spec.margin) for spec in (GSM8K, GPQA, AIME)}
    assert plans == {
        "gsm8k": (1319, 1, (1,), 0.015),
        "gpqa_diamond": (198, 16, (4, 8, 12, 16), 0.025),
        "aime25": (30, 32, (8, 16, 24, 32), 0.03),
    }
    for spec in (GSM8K, GPQA, AIME):
        assert spec.looks[-1] == spec.repeats
        assert "{question}" in spec.prompt
        assert (spec.folder / "SOURCE.md").is_file()
    assert GSM8K.sampling.thinking is None
    assert GPQA.sampling.thinking is AIME.sampling.thinking is True
