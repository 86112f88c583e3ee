"""Requests as the engine gives them to a stage's `forecast`."""

from pipeline.engine.run.forecast import Input, Request


def request(params, facts=None, data=None, **settings):
    """A request of these params on a model, and on data, of which these facts are known."""
    inputs = {"model": Input(None, lambda: facts or {}), "data": Input(None, lambda: data or {})}
    return Request(params, inputs, settings)
