"""The mouth and ears: HTTP, Server-Sent Events, websockets and the command line around one engine.

Imports the mind only through the names of the `engine` package, and knows no torch.
"""
