"""Models behind a server, and which backend runs what."""
