"""The architectures that transformers lacks."""

from __future__ import annotations


def register_custom_models(model_type: object) -> None:
    """Make an architecture of ours known to transformers' Auto classes; any other costs nothing.

    Args:
        model_type: as config.json says it.
    """
    if isinstance(model_type, str) and model_type.startswith("soft_moe_"):
        import pipeline.models.architecture.soft_moe  # noqa: F401  brings four families' code, seconds to import
