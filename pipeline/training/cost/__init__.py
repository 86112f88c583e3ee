"""FLOPs, memory and time, before and while it trains."""
