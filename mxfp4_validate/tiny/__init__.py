"""The embedded default: a small trained GPT-OSS checkpoint and a server over it whose experts run on any backend, healthy or broken on purpose."""
