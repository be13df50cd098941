"""What no client would send and every client might: generated requests, frames and histories, on a live server."""
