"""Remembers: sessions, their memories and transcripts in Redis, each change whole or not at all.

Knows no model: a memory is named tensors to `snapshot`, and bytes to everything else here.
"""
