"""Question to messages: our own wording, or a profile that takes an installed tool's."""

from __future__ import annotations

from mxfp4_validate.prompts.profiles import PROFILES, Profile, profile
from mxfp4_validate.prompts.render import Context, Rendered, render

__all__ = ["PROFILES", "Context", "Profile", "Rendered", "profile", "render"]
