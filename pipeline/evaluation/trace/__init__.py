"""TRACE, a benchmark of tasks learned one after the other (arXiv 2310.06762): its tasks and its metrics."""
