"""Tokens and text: the checkpoint's tokenizer and chat template, and an answer that grows token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mxfp4_validate.errors import UsageError

#: What a byte-level decoder gives for a character whose bytes have not all come yet.
INCOMPLETE = "\ufffd"


class Text:
    """The tokenizer of a checkpoint folder. `end_ids` are the tokens that end an answer."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"--model {folder}: its tokenizer cannot be read ({error})") from error
        # The Rust object itself: transformers' wrapper sets padding around every call, which fails while another thread decodes.
        self._fast: Any = self._tokenizer.backend_tokenizer
        self.end_ids = frozenset(_end_ids(folder, config, self._tokenizer.eos_token_id))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none are added. Raises `ValueError` for half a surrogate pair."""
        text.encode()
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        return str(self._fast.decode(list(tokens), skip_special_tokens=skip_special))

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """The prompt of a conversation by the checkpoint's template. Raises `ValueError` when there is none or it refuses the messages."""
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)
        except Exception as error:  # jinja2's errors and whatever a template calls
            raise ValueError(f"the chat template refuses them ({type(error).__name__}: {error})") from error
        return self.encode(str(text))


def _end_ids(folder: Path, config: Mapping[str, Any], eos: int | None) -> set[int]:
    """End tokens of generation_config.json, config.json and the tokenizer together: a checkpoint may name them in any of the three."""
    file = folder / "generation_config.json"
    found: set[int] = set() if eos is None else {eos}
    for source in (config, json.loads(file.read_text()) if file.exists() else {}):
        value = source.get("eos_token_id")
        found |= {int(value)} if isinstance(value, int) else {int(v) for v in value or ()}
    return found


class TextState:
    """One answer's text. `stopped` is the stop text that ended it, None until then."""

    def __init__(self, text: Text, stop: Sequence[str], skip_special: bool) -> None:
        self._text, self._stop, self._skip = text, tuple(stop), skip_special
        self._tokens: list[int] = []
        self._string = ""
        self.stopped: str | None = None

    def add(self, token: int) -> None:
        """Take in a token; answers here are short, so the whole is decoded again."""
        self._tokens.append(token)
        self._string = self._text.decode(self._tokens, self._skip)
        found = [(self._string.find(stop), stop) for stop in self._stop if stop in self._string]
        if found:
            place, self.stopped = min(found)
            self._string = self._string[:place]

    def whole(self) -> str:
        """The answer, cut before its stop text."""
        return self._string

    def certain(self) -> str:
        """The part no later token can take back: without half characters and without what may become a stop text."""
        text = self._string.rstrip(INCOMPLETE)
        held = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return text[: len(text) - held]
