"""Talk to a Hope server: sessions over HTTP, turns over a websocket. Knows the wire and nothing behind it."""

from hope_client.client import Conversation, HopeClient, HopeRequestError

__all__ = ["Conversation", "HopeClient", "HopeRequestError"]
