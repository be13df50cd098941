"""The routes, one file per thing a client may ask for; each only frames what the engine says."""
