"""Whatever a model, a server or a record says, the page holds no script of theirs and keeps its shape; read with a real HTML parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import html5lib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting import html, junit, markdown
from mxfp4_validate.reporting.clean import clean, head_tail, script_json
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.report_rig import make_eval, make_kernel, twin

H = "{http://www.w3.org/1999/xhtml}"
PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "closing the island": "</script><script>alert(1)</script><!--",
    "comment in the island": "<!--<script>",
    "event attribute": '"><img src=x onerror=alert(1)>',
    "single quotes": "' onmouseover='alert(1)",
    "link": "[click](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>",
    "style": "</style><style>*{display:none}</style>",
    "closing the page": "</pre></details></main></body></html><h1>hello</h1>",
    "svg": "<svg><script href=data:text/javascript,alert(1)></script></svg>",
    "template": "{{ 7 * 7 }} {% for x in y %} {# #}",
    "entities": "&lt;script&gt; &#0; &#x202e; &amp;",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f\x1b[31m\x1b]0;title\x07",
    "surrogates": "\ud800 \udfff \udbff",
    "direction": "\u202eevil\u202c \u2066x\u2069 \u200f",
    "noncharacters": "\ufffe\uffff\ufdd0",
    "tower": "Z" + "\u0301" * 5000,
    "one long word": "W" * 20_000,
    "cdata": "]]><![CDATA[<x/>",
    "markdown": "| a | b |\n```\n</details> **x** @everyone `code` ![x](http://e.vil/a.png)",
    "workflow command": "\n::error::x\n%0A::set-output name=a::b",
}


def page_of(tmp: Path, payload: str) -> tuple[str, Any, str, str]:
    """A report with the payload in every place that somebody else fills."""
    right = [make_eval(tmp / "b", "marlin", lambda i: 1.0, 4, 2, text=lambda i, r: f"fine {i}")]
    right.append(
        make_eval(
            tmp / "c",
            payload[:200].encode("utf-8", "replace").decode(),
            lambda i: 0.0,
            4,
            2,
            text=lambda i, r: f"{payload}\n{i}",
            identity={"flags": payload.encode("utf-8", "replace").decode()},
        )
    )
    plain = payload.encode("utf-8", "replace").decode()
    bad = twin("dsv4-flash/m65/random/s0", 9, 4, "failed", plain)
    gone = Result("x", "twin", "random", plain[:100] or "x", "some.module:factory", "unavailable", plain)
    kernel = make_kernel(tmp / "k.sqlite", [bad, gone], 1, {"case": plain})
    inputs = gather([kernel, *right], CompareOptions())
    judgement = judge(inputs)
    text = html.render(inputs, judgement)
    return text, html5lib.parse(text), markdown.render(inputs, judgement), junit.render(inputs, judgement)


def shape(page: Any) -> list[str]:
    """The page's skeleton: its sections, and what stands directly in body."""
    body = page.find(f"{H}body")
    return [child.tag.removeprefix(H) for child in body] + [str(s.get("id")) for s in page.iter(f"{H}section")]


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_stay_text(tmp_path: Path, name: str) -> None:
    text, page, summary, xml = page_of(tmp_path / "x", PAYLOADS[name])
    _, harmless, _, _ = page_of(tmp_path / "y", "harmless")
    scripts = list(page.iter(f"{H}script"))
    assert [s.get("type") for s in scripts] == ["application/json", None]
    assert scripts[1].text == (html.TEMPLATES / "report.js").read_text()
    assert "records" in json.dumps(list(json.loads(scripts[0].text))) or json.loads(scripts[0].text)["kernels"]
    assert len(list(page.iter(f"{H}style"))) == 1
    assert shape(page) == shape(harmless)
    for node in page.iter():
        if not isinstance(node.tag, str):
            pytest.fail("a comment came into the page")
        for attribute, value in node.attrib.items():
            assert not str(attribute).lower().startswith("on"), f"event attribute on {node.tag}"
            if str(attribute).endswith(("href", "src")):
                assert value.startswith("#"), f"{node.tag} leads to {value!r}"
    assert not {n.tag.removeprefix(H) for n in page.iter()} & {"img", "iframe", "object", "embed", "form", "base", "link"}
    text.encode("utf-8")
    for each in (text, summary, xml):
        assert not [c for c in set(each) if clean(c) != c and c not in "\u2028\u2029"], f"a steering character got into {each[:20]!r}"


def test_the_judge_of_payloads_can_fail() -> None:
    """The checks above find what they look for."""
    page = html5lib.parse("<body><section id=a></section><img src=x onerror=alert(1)><script>alert(1)</script>")
    assert [s.text for s in page.iter(f"{H}script")] == ["alert(1)"]
    assert any(str(a).startswith("on") for n in page.iter() for a in n.attrib)


def test_a_huge_answer_is_cut(tmp_path: Path) -> None:
    """400,000 tokens of text: head and tail are shown, with how much is left out, and the page stays small."""
    words = "word " * 400_000
    runs = [
        make_eval(tmp_path / "b", "marlin", lambda i: 1.0, 4, 1),
        make_eval(tmp_path / "c", "x", lambda i: 0.0, 4, 1, text=lambda i, r: words),
    ]
    inputs = gather(runs, CompareOptions())
    text = html.render(inputs, judge(inputs))
    assert len(text) < 200_000
    assert f"{len(words) - 1000} characters left out" in text


@given(st.text(st.characters(categories=None), max_size=300))
def test_clean_leaves_nothing_that_steers(text: str) -> None:
    shown = clean(text)
    shown.encode("utf-8")
    assert clean(shown) == shown
    assert not any(0xD800 <= ord(c) < 0xE000 or (ord(c) < 32 and c not in "\n\t") for c in shown)


@given(st.text(max_size=50), st.integers(1, 20))
def test_head_and_tail_are_of_the_text(text: str, most: int) -> None:
    head, tail = head_tail(text, most)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert head == text if not tail else len(head) == len(tail) == most


@given(
    st.recursive(st.none() | st.booleans() | st.text(st.characters(categories=None)), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_the_island_is_json_and_nothing_else(value: Any) -> None:
    text = script_json(value)
    assert not set(text) & set("<>&\u2028")
    assert text.isascii()
    assert json.loads(text) == value
