"""The files of docs/ci: the YAML loads, and every command in them is one that our command line and our plans know."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from mxfp4_validate.cli import _parser
from mxfp4_validate.plans import files
from mxfp4_validate.serving.options import shard_of

CI = Path(__file__).resolve().parent.parent / "docs" / "ci"
FILES = sorted(path for path in CI.iterdir() if path.is_file() and path.suffix != ".md")
PLANS = Path(__file__).resolve().parent.parent / "docs" / "plans.md"


def commands(path: Path) -> list[list[str]]:
    """Words behind every `mxfp4-validate` that begins a command, with variables filled in as a runner would."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".py":
        lists = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.List)]
        found = [[item.value for item in node.elts if isinstance(item, ast.Constant)] for node in lists]
        return [[str(word) for word in words[1:]] for words in found if words and words[0] == "mxfp4-validate"]
    lines = re.findall(r"^\s*(?:exec |srun [-=\w ]*|\$ )?mxfp4-validate ([^|#\n]*)", text, re.MULTILINE)
    return [[filled(word) for word in shlex.split(line)] for line in lines]


def filled(word: str) -> str:
    """Variables: the plan's is a plan, an index is 1, a count is 4, anything else a name."""
    word = re.sub(r"\$+\(\(\w+ \+ 1\)\)|\$+\w+_TASK_ID", "1", word)
    word = re.sub(r"\$+\w+_COUNT", "4", word)
    return re.sub(r"\$+\w+", "name", re.sub(r"^\$+PLAN$", "aa-tiny.toml", word))


@pytest.mark.parametrize("path", [*FILES, PLANS, CI / "README.md"], ids=lambda path: path.name)
def test_every_command_is_one_of_ours(path: Path) -> None:
    found = commands(path)
    assert found or path.name == "README.md", f"{path.name} runs nothing"
    for words in found:
        args, rest = _parser().parse_known_args(words)
        assert not rest, f"{path.name}: {' '.join(words)}: {rest} mean nothing"
        plan = getattr(args, "plan", None) or Path(getattr(args, "eval", "") or "")
        if plan.suffix == ".toml" and not plan.name.startswith("my"):
            files.load(plan)
        shard_of(getattr(args, "shard", "1/1"))


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix in (".yml", ".yaml")], ids=lambda path: path.name)
def test_yaml_loads_and_holds_jobs(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert documents
    for document in documents:
        assert {"jobs", "steps", "spec"} & set(document), f"{path.name} holds no job"


def test_kubernetes_tries_nothing_again_that_was_judged() -> None:
    job = next(iter(yaml.safe_load_all((CI / "kubernetes.yaml").read_text(encoding="utf-8"))))
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailIndex"
    assert set(rule["onExitCodes"]["values"]) == {1, 2, 4}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "a failure policy needs it"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"/{job['spec']['completions']}" in container["args"][0], "shards and pods are not as many"


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sh"], ids=lambda path: path.name)
def test_shell_scripts_parse(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).returncode == 0


def test_every_file_is_in_the_readme() -> None:
    page = (CI / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in page for path in FILES)
