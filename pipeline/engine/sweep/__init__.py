"""A sweep's cells: how many fit on this machine at once, what state each is in, and how all of them are stopped."""
