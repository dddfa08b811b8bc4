"""What really runs behind an address: model, versions, effective MoE backend, context length, and which boot of the server it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from mxfp4_validate.endpoint.client import Client

#: Settings that are kept. Everything else of a server's info is left where it is: it may hold keys, paths of users or counters.
KEPT = re.compile(
    r"^(model_path|served_model_name|tokenizer_path|revision|version|sglang_version|vllm_version|dtype|quantization|kv_cache_dtype"
    r"|.*moe.*backend|moe_.*|attention_backend|sampling_backend|(tp|dp|ep|pp)_size|tensor_parallel_size|context_length|max_model_len"
    r"|max_running_requests|max_total_num_tokens|chunked_prefill_size|speculative_.*|reasoning_parser|chat_template|random_seed"
    r"|enable_[a-z_]+|disable_[a-z_]+|mem_fraction_static|cuda_graph_max_bs|page_size|load_format|flashinfer_.*|deterministic.*"
    r"|effective_.*|system_fingerprint|autotune_cache.*)$"
)
_SECRET = re.compile(r"key|token$|password|secret|credential", re.IGNORECASE)
#: What names one boot, where a server gives it.
_BOOT = ("boot_id", "start_time", "server_start_time", "startup_time", "launch_id", "pid")
#: A change of one of these during a run makes it worthless.
CRITICAL = ("model", "model_path", "version", "moe_backend")
_BACKEND = ("effective_moe_runner_backend", "effective_moe_backend", "moe_runner_backend", "moe_backend")


@dataclass(frozen=True)
class Identity:
    """One server as it describes itself.

    Attributes:
        values: name -> value, flat; always holds `model`, and `moe_backend` and `version` where the server tells.
        boot: a short id of this boot of this server.
        context_length: tokens of prompt and answer together, None if unknown.
        models: the ids it serves.
    """

    values: Mapping[str, str]
    boot: str
    context_length: int | None
    models: tuple[str, ...]

    def critical(self) -> dict[str, str]:
        return {name: self.values[name] for name in CRITICAL if name in self.values}


async def read_identity(client: Client, asked_model: str | None) -> Identity:
    """Ask `/v1/models` and `/get_server_info` or `/server_info`. Transport errors are raised; a server without info has few values."""
    listed = await client.get_json("/v1/models")
    info = await client.get_json("/get_server_info") or await client.get_json("/server_info") or {}
    return build_identity(listed, info if isinstance(info, dict) else {}, asked_model, client.address.root)


def build_identity(listed: Any, info: Mapping[str, Any], asked_model: str | None, root: str) -> Identity:
    """The identity from the two documents."""
    found = listed.get("data") if isinstance(listed, dict) else None
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    models = tuple(str(entry.get("id")) for entry in entries)
    flat = _flatten(info)
    values = {name: value for name, value in flat.items() if KEPT.match(name) and not _SECRET.search(name)}
    values["model"] = asked_model or (models[0] if models else values.get("served_model_name", ""))
    version = next((flat[name] for name in ("version", "sglang_version", "vllm_version") if name in flat), None)
    if version:
        values["version"] = version
    backend = next((flat[name] for name in _BACKEND if flat.get(name, "") not in ("", "None", "auto")), None)
    if backend:
        values["moe_backend"] = backend
    mine = next((entry for entry in entries if entry.get("id") == values["model"]), entries[0] if entries else {})
    context = next(
        (n for n in (_int(flat.get("context_length")), _int(mine.get("max_model_len")), _int(flat.get("max_model_len"))) if n), None
    )
    marks = {name: flat[name] for name in _BOOT if name in flat}
    boot = hashlib.sha256(json.dumps([root, marks, sorted(values.items())]).encode()).hexdigest()[:10]
    return Identity(values, boot, context, models)


def _flatten(info: Mapping[str, Any]) -> dict[str, str]:
    """Scalars of the document, and those of `server_args` and of the first of `internal_states`, as strings; inner states win."""
    flat: dict[str, str] = {}
    inner = info.get("internal_states")
    layers = [info, info.get("server_args"), inner[0] if isinstance(inner, list) and inner else None]
    for layer in layers:
        if isinstance(layer, dict):
            flat.update({str(k): str(v) for k, v in layer.items() if isinstance(v, str | int | float | bool) and len(str(v)) <= 500})
    return flat


def _int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def changes(old: Identity, new: Identity) -> list[str]:
    """What of the critical values changed, a line each with both values."""
    before, after = old.critical(), new.critical()
    return [
        f"{k} changed from {before.get(k, 'unknown')!r} to {after.get(k, 'unknown')!r}" for k in CRITICAL if before.get(k) != after.get(k)
    ]


#: What reading an identity may raise when the server does not answer.
UNREACHABLE = (TimeoutError, aiohttp.ClientError, OSError)
