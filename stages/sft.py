"""Instruction-tune on conversations: by default all parameters, the loss on assistant turns only."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate

from pipeline.engine import worker
from pipeline.engine.outlook import Ahead, Outlook
from pipeline.typed import checked

VERSION = 3
RESUMABLE = True
_MIXING = ("overlong", "shares")


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Refuse settings that cannot be run."""
    from pipeline.data.schedule import check_shares
    from pipeline.training.settings import Settings

    if params["overlong"] not in ("truncate", "skip", "split"):
        raise ValueError(f"overlong={params['overlong']!r} must be truncate, skip or split")
    check_shares(params["shares"], None)
    checked(params["strategy"])
    Settings.of(params).check_length(facts.get("max_position_embeddings"))


def outlook(ahead: Ahead) -> Outlook:
    """Parameters, memory, FLOPs and time of this training."""
    from pipeline.data.prepared import rows_ahead
    from pipeline.models.shape import read_shape
    from pipeline.training.forecast import tell

    shape = ahead.model("shape", read_shape)
    rows_of = rows_ahead(ahead.inputs["data"], ahead.params, _MIXING)
    return Outlook({"shape": shape}, tell(shape, ahead.params, ahead.launch, rows_of, ahead.earlier))


def run(context: worker.Context) -> dict[str, Any]:
    """Train on packed conversations."""
    from pipeline.data.prepared import keep_chat_template, open_stream, unused, validation_rows
    from pipeline.engine.artifact import model_dir
    from pipeline.models import load_tokenizer
    from pipeline.training.device import launch_options
    from pipeline.training.fit import fit
    from pipeline.training.runtime import StoppedError
    from pipeline.training.settings import Settings

    settings, data, source = Settings.of(context.params), context.inputs["data"], model_dir(context.inputs["model"])
    context.handle_stop()
    runtime, device = launch_options(context.launch, context.directory, context.progress, context.should_stop)
    mixing = {key: context.params[key] for key in _MIXING}
    stream = open_stream(data, settings.seq_len, settings.seed, **mixing)
    stream.set_length(settings.total_steps(stream.rows_of) * settings.batch_size, settings.last_row(stream.rows_of))
    tokenizer = load_tokenizer(source)
    validation = validation_rows(data, tokenizer, settings.seq_len, settings.validation_tokens)
    strategy = instantiate(context.params["strategy"], _convert_="all")
    try:
        metrics = fit(source, context.directory / "model", strategy, settings, stream, validation, runtime, device)
    except StoppedError as stopped:
        raise worker.Interrupted(str(stopped)) from stopped
    if context.is_main:
        keep_chat_template(data, tokenizer, context.directory / "model")
    return {**metrics, **stream.summary(), "data": unused(data)}


if __name__ == "__main__":
    worker.main(run)
