"""Messages of every profile: ours by its template, others by the installed tool's own functions."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_validate import evalspec
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.grading import MODES
from mxfp4_validate.prompts import PROFILES, Context, profile, render
from mxfp4_validate.questions import Question, load
from mxfp4_validate.questions.canonical import question

GSM8K, GPQA, AIME = (evalspec.load(name) for name in ("gsm8k", "gpqa_diamond", "aime25"))
ROWS = [
    {
        "Question": f"Which is {n}?",
        "Correct Answer": f"r{n} [title]x",
        **{f"Incorrect Answer {i}": f"w{n}  {i}" for i in (1, 2, 3)},
        **dict.fromkeys(("Explanation", "Subdomain", "Writer's Difficulty Estimate"), ""),
    }
    for n in range(30)
]
CHOICES = [question(row, "gpqa", "here") for row in ROWS]
ORDER = tuple(item.id for item in CHOICES)
SUM = question({"question": "One {plus} {options} one?", "answer": "2"}, "gsm8k", "here")


def content(rendered):
    assert [message["role"] for message in rendered.messages] == ["user"]
    return rendered.messages[0]["content"]


def test_our_wording_asks_for_what_the_graders_read():
    assert "\\boxed{}" in content(render(SUM, profile("default"), GSM8K))
    text = content(render(CHOICES[0], profile("default"), GPQA))
    assert '"Answer: X"' in text
    for letter, option in zip("ABCD", CHOICES[0].options, strict=True):
        assert f"\n{letter}) {option}\n" in text


@given(st.text(min_size=1).filter(str.strip))
def test_a_question_is_never_read_as_a_template(text):
    """Braces, field names and anything else in a question stay as they are."""
    asked = Question("gsm8k-0", text + "{options}{question}{0}", "1")
    got = content(render(asked, profile("default"), GSM8K))
    assert got == GSM8K.prompt.rstrip("\n").replace("{question}", "\x00").replace("\x00", asked.text)


def test_the_hash_is_of_what_is_sent():
    one, two = (render(item, profile("default"), GPQA) for item in CHOICES[:2])
    assert one.sha256 == render(CHOICES[0], profile("default"), GPQA, Context(repeat=3)).sha256 != two.sha256
    assert len(one.sha256) == 64
    assert one.gold == CHOICES[0].gold


def test_sgl_eval_sends_the_same_aime_messages():
    """All 30, but for the blanks that the canonical form drops at the end of one."""
    from sgl_eval.evals._loader import load_bundled
    from sgl_eval.evals._prompts import render_prompt, resolve_prompt

    ours = [content(render(item, profile("sgl-eval"), AIME)) for item in load(AIME).questions]
    theirs = [render_prompt(resolve_prompt("math"), problem=row.inputs["problem"]) for row in load_bundled("aime25")(None)]
    assert sum(one == two for one, two in zip(ours, theirs, strict=True)) == 29
    assert ours == [text.rstrip() for text in theirs]


@pytest.mark.filterwarnings("default")
def test_sgl_eval_sends_the_same_gpqa_messages():
    """Its own preparation under seed 42: the same options in the same order under the same wording, and the same gold letter."""
    from sgl_eval._vendored.nemo_skills.dataset.gpqa import prepare
    from sgl_eval.evals._prompts import render_prompt, resolve_prompt

    prepare.random.seed(42)
    for item, entry in zip(CHOICES, [prepare.format_entry(row) for row in ROWS], strict=True):
        got = render(item, profile("sgl-eval"), GPQA, Context(order=ORDER, repeat=5))
        assert content(got) == render_prompt(resolve_prompt("mcq-4choices"), problem=entry["problem"])
        assert got.gold == entry["expected_answer"]
        assert got.options == tuple(entry[letter] for letter in "ABCD")


@pytest.fixture
def fakes(monkeypatch):
    """Stand-ins for sglang and gpt-oss, which are not installed here: the functions that their sources have, with wording of our own."""
    choice = types.SimpleNamespace(format_multichoice_question=lambda row: "|".join(row[key] for key in ("Question", "A", "B", "C", "D")))
    gsm8k = types.SimpleNamespace(
        get_one_example=lambda lines, i, answered: f"Q {lines[i]['question']} A" + (lines[i]["answer"] if answered else ""),
        get_few_shot_examples=lambda lines, k: "".join(f"Q {lines[i]['question']} A {lines[i]['answer']};" for i in range(k)),
    )
    modules = {
        "sglang.test.simple_eval_common": choice,
        "sglang.test.simple_eval_gsm8k": gsm8k,
        "sglang.test.simple_eval_aime25": types.SimpleNamespace(QUERY_TEMPLATE="<{question}>"),
        "gpt_oss.evals.gpqa_eval": choice,
        "gpt_oss.evals.aime_eval": types.SimpleNamespace(format_aime_question=lambda row: f"[{row['question']}]"),
    }
    for name, module in modules.items():
        for depth in range(1, name.count(".") + 1):
            monkeypatch.setitem(sys.modules, name.rsplit(".", depth)[0], types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def reference_orders(count, repeats):
    """Python's own stream, as the tools draw from it: one sample a row, repeat after repeat."""
    import random

    source = random.Random(0)
    return [[source.sample(range(4), 4) for _ in range(count)] for _ in range(repeats)]


@pytest.mark.parametrize("name", ["run_eval", "gpt-oss"])
def test_one_stream_of_orders_over_the_file(fakes, name):
    """gpt-oss draws on for every repeat; run_eval asks the same rows again."""
    drawn = reference_orders(len(ROWS), 4)
    for repeat in range(4):
        for place, (item, row) in enumerate(zip(CHOICES, ROWS, strict=True)):
            options = [row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
            order = drawn[repeat if name == "gpt-oss" else 0][place]
            got = render(item, profile(name), GPQA, Context(order=ORDER, repeat=repeat))
            assert content(got) == "|".join([row["Question"], *(options[i] for i in order)])
            assert "ABCD"[order.index(0)] == got.gold
            assert got.order == tuple(order)


def test_options_of_the_same_text_have_the_gold_letter_of_the_first(fakes):
    """The tools find the right option by its text; so does their profile."""
    row = ROWS[0] | {"Incorrect Answer 1": ROWS[0]["Correct Answer"]}
    item = question(row, "gpqa", "here")
    got = render(item, profile("run_eval"), GPQA, Context(order=(item.id,)))
    assert got.gold == "ABCD"[got.options.index(row["Correct Answer"])]


def test_file_orders_need_the_whole_file(fakes):
    with pytest.raises(UsageError, match="not among the 29"):
        render(CHOICES[-1], profile("gpt-oss"), GPQA, Context(order=ORDER[:-1]))


def test_run_eval_shows_five_rows_and_does_not_ask_them(fakes):
    items = [question({"question": f"Sum {n}?", "answer": str(n)}, "gsm8k", "here") for n in range(7)]
    context = Context(order=tuple(item.id for item in items), shots=tuple((f"Sum {n}?", f"so #### {n}") for n in range(5)))
    got = content(render(items[5], profile("run_eval"), GSM8K, context))
    assert got == "".join(f"Q Sum {n}? A so #### {n};" for n in range(5)) + "Q Sum 5? A"
    with pytest.raises(UsageError, match="not asked"):
        render(items[4], profile("run_eval"), GSM8K, context)
    with pytest.raises(UsageError, match=r"context\.shots"):
        render(items[5], profile("run_eval"), GSM8K)


def test_free_answers_of_the_other_tools(fakes):
    item = question({"question": "One?", "answer": "1"}, "aime25", "here")
    assert content(render(item, profile("run_eval"), AIME)) == "<One?>"
    assert content(render(item, profile("gpt-oss"), AIME)) == "[One?]"
    with pytest.raises(UsageError, match="no 'gsm8k'"):
        render(SUM, profile("gpt-oss"), GSM8K)


def test_another_version_of_a_tool_is_named(fakes):
    del fakes["gpt_oss.evals.aime_eval"].format_aime_question
    item = question({"question": "One?", "answer": "1"}, "aime25", "here")
    with pytest.raises(UsageError, match="built otherwise"):
        render(item, profile("gpt-oss"), AIME)


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("sgl-eval", "sgl_eval", "sgl-eval"), ("run_eval", "sglang", "sglang"), ("gpt-oss", "gpt_oss", "gpt-oss")],
)
def test_an_absent_package_is_named_with_the_way_to_get_it(monkeypatch, name, package, install):
    for module in [module for module in sys.modules if module.partition(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, module, None)
    item = question({"question": "One?", "answer": "1"}, "aime25", "here")
    with pytest.raises(UsageError, match=f"pip install {install}"):
        render(item, profile(name), AIME)


def test_profiles_are_whole():
    """Each names a grading mode; its sampling is one that the eval accepts; the eval's own stays where a tool leaves it to the server."""
    for each in PROFILES.values():
        assert each.grader in MODES
        for spec in (GSM8K, GPQA, AIME):
            assert each.apply(spec).name == spec.name
    assert profile("default").apply(GPQA) == GPQA
    assert dataclasses.asdict(profile("sgl-eval").apply(AIME).sampling)["temperature"] == 0.0
    assert profile("sgl-eval").apply(AIME).sampling.max_tokens == AIME.sampling.max_tokens
    assert profile("run_eval").apply(GSM8K).sampling.max_tokens == 2048
    with pytest.raises(UnknownName, match="sgl-eval"):
        profile("sgl_eval")
