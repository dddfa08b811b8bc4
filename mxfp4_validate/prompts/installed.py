"""The wording of other tools, taken from their installed packages at run time; none of it is kept here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mxfp4_validate.errors import UsageError
from mxfp4_validate.prompts.profiles import Profile
from mxfp4_validate.questions.base import Question
from mxfp4_validate.questions.canonical import LETTERS

Messages = tuple[Mapping[str, str], ...]
Shots = Sequence[tuple[str, str]]


def messages(profile: Profile, suite: str, question: Question, options: tuple[str, ...], shots: Shots) -> tuple[tuple[str, ...], Messages]:
    """The options as the tool shows them, and its messages.

    Raises:
        UsageError: the tool has no such eval, is not installed, or its installed version is built otherwise.
    """
    writers: dict[str, Callable[..., tuple[tuple[str, ...], Messages]]] = {
        "sgl-eval": _sgl_eval,
        "run_eval": _run_eval,
        "gpt-oss": _gpt_oss,
    }
    if suite not in profile.sampling:
        raise UsageError(f"profile {profile.name!r} has no {suite!r}: the tool has no such eval; use profile 'default'")
    try:
        return writers[profile.name](suite, question, options, shots)
    except ImportError as error:
        raise UsageError(f"profile {profile.name!r} takes its wording from {profile.package!r}: {error}; {profile.install}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"profile {profile.name!r}: the installed {profile.package!r} is built otherwise than the versions known "
            f"({type(error).__name__}: {error}); install one that docs/grading.md names, or use profile 'default'"
        ) from error


def _user(content: str) -> Messages:
    return ({"role": "user", "content": content},)


def _sgl_eval(suite: str, question: Question, options: tuple[str, ...], shots: Shots) -> tuple[tuple[str, ...], Messages]:
    root = "sgl_eval._vendored.nemo_skills.dataset"
    prompts: Any = importlib.import_module("sgl_eval.evals._prompts")
    # The data set's own settings name the prompt, so a version that changes it is followed.
    settings = str(importlib.import_module(f"{root}.{suite}").GENERATION_ARGS).split()
    name = dict(part.removeprefix("++").split("=", 1) for part in settings if "=" in part)["prompt_config"].rpartition("/")[2]
    path = prompts.resolve_prompt(name)
    text = question.text
    if options:
        options = tuple(str(importlib.import_module(f"{root}.gpqa.prepare").preprocess(option)) for option in options)
        text = importlib.import_module(f"{root}._utils").get_mcq_fields(text, list(options))["problem"]
    system = importlib.import_module("yaml").safe_load(path.read_text(encoding="utf-8")).get("system")
    asked = _user(str(prompts.render_prompt(path, problem=text)))
    return options, ({"role": "system", "content": str(system).format()}, *asked) if system and not options else asked


def _run_eval(suite: str, question: Question, options: tuple[str, ...], shots: Shots) -> tuple[tuple[str, ...], Messages]:
    if suite == "gpqa":
        common: Any = importlib.import_module("sglang.test.simple_eval_common")
        return options, _user(common.format_multichoice_question(_row(question, options)))
    module: Any = importlib.import_module(f"sglang.test.simple_eval_{suite}")
    if suite == "aime25":
        return options, _user(module.QUERY_TEMPLATE.format(question=question.text))
    lines = [{"question": text, "answer": answer} for text, answer in shots]
    asked = module.get_one_example([{"question": question.text, "answer": ""}], 0, False)
    return options, _user(module.get_few_shot_examples(lines, len(lines)) + asked)


def _gpt_oss(suite: str, question: Question, options: tuple[str, ...], shots: Shots) -> tuple[tuple[str, ...], Messages]:
    if suite == "gpqa":
        module: Any = importlib.import_module("gpt_oss.evals.gpqa_eval")
        return options, _user(module.format_multichoice_question(_row(question, options)))
    aime: Any = importlib.import_module("gpt_oss.evals.aime_eval")
    return options, _user(aime.format_aime_question({"question": question.text}))


def _row(question: Question, options: tuple[str, ...]) -> dict[str, str]:
    return {"Question": question.text, **dict(zip(LETTERS, options, strict=True))}
