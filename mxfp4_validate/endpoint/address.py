"""Base URLs and the API key: checked before anything is sent, and never printed with a secret in them."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from mxfp4_validate.errors import UsageError


class Secret:
    """A value that no print, log, repr or traceback shows; `reveal` is called where the header is built and nowhere else."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """`text` without the secret: raw, percent-encoded, base64 or as Python's repr."""
        if len(self._value) < 6 or self._value == "EMPTY":  # too short to be a key, and it would eat ordinary words
            return text
        forms = (self._value, quote(self._value, safe=""), base64.b64encode(self._value.encode()).decode(), repr(self._value)[1:-1])
        for form in forms:
            text = text.replace(form, "[redacted]")
        return text

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__


@dataclass(frozen=True)
class Address:
    """One server. `api` ends in /v1, `root` does not; both without a trailing slash."""

    api: str
    root: str
    host: str
    loopback: bool

    @property
    def encrypted(self) -> bool:
        return self.api.startswith("https://")

    @property
    def proxy(self) -> str:
        """The proxy that the environment puts before it, without its credentials; "" if none: loopback is never proxied."""
        url = "" if self.loopback or proxy_bypass(self.host) else getproxies().get(self.api.partition(":")[0], "")
        return url.partition("://")[0] + "://" + url.rpartition("@")[2].rpartition("//")[2] if url else ""


def parse_address(text: str, *, allow_link_local: bool = False) -> Address:
    """A base URL; `UsageError` for another scheme, credentials, a query, or a link-local host (cloud metadata) unless allowed."""
    try:
        parts = urlsplit(text.strip())
        host = parts.hostname or ""
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--base-url {text!r}: {error}") from error
    if parts.username or parts.password:
        raise UsageError("--base-url holds a user name or password; give the key in OPENAI_API_KEY instead")
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"--base-url {text!r} is not an http or https URL; write http://HOST:PORT/v1")
    if parts.query or parts.fragment:
        raise UsageError(f"--base-url {text!r} has a query or fragment; write http://HOST:PORT/v1")
    address = _ip(host)
    if address is not None and address.is_link_local and not allow_link_local:
        raise UsageError(f"--base-url {text!r} is a link-local address; --allow-link-local if that is meant")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    root = f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"
    root = root.removesuffix("/v1")
    return Address(f"{root}/v1", root, host, host == "localhost" or bool(address and address.is_loopback))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
