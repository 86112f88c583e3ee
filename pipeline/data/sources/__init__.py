"""Files, packages, archives and the hub as rows, in a fixed order."""
