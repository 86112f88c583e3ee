"""The language-model loss over packed rows, and what a strategy adds to it.

Shapes: B rows, T tokens of a row, X all places of a batch in order, N labelled tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from pipeline.training.kernels.chunked import States, chunked_cross_entropy, chunked_kl
from pipeline.training.kernels.document_separation import IGNORED, documents_apart
from pipeline.training.kernels.head import Head, decoder_of
from pipeline.training.kernels.routers import Routers
from pipeline.training.methods.penalty import MicroBatch, Penalty


class PackedLoss(nn.Module):
    """A causal language model and its summed loss over packed rows, as one module (what DDP and FSDP wrap).

    Isolation of documents rests on `position_ids` that restart at 0: transformers' mask builder turns a restart into
    what the attention kernel takes (see `attention` beside this file), and rotary positions restart with it. No
    attention mask and no cache may be passed, or it would not.

    Args:
        model: a transformers causal language model, adapters included.
        head: `head_of` it; for None its own forward makes the logits, all at once.
        chunk: labelled tokens whose logits are in memory at once.
        one_row: give the model all rows as one: transformers' flash attention sees restarts in a batch of one row only,
            and in a larger one lets every document see those before it.
        apart: give the model one document a row, for one that mixes those of a row (`mixes_documents`); without
            penalties.
        penalties: by name, added to the loss in training mode.
        base: the model that they compare with, if one needs it.
        routers: of the model, whose load may be asked for; None: it has none.
    """

    def __init__(
        self,
        model: Any,
        head: Head | None,
        chunk: int = 512,
        one_row: bool = False,
        apart: bool = False,
        penalties: Mapping[str, Penalty] | None = None,
        base: Any = None,
        routers: Routers | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.one_row = one_row
        self.apart = apart
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._causal = [causal]  # in a list: a second registration would double the parameters' names
        self._base = [base]  # likewise: it is neither trained nor sharded, and its gradient is not exchanged
        self._penalties = dict(penalties or {})
        self._head = head
        self._routers = routers
        self._balanced = any(getattr(penalty, "needs_routers", False) for penalty in self._penalties.values())

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        padding: torch.Tensor | None = None,
        logits: bool | torch.Tensor = False,
        load: bool = False,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Summed loss in nats over the labelled tokens; with penalties in training mode, a vector of it and their sums.

        Args:
            input_ids: [B, T].
            labels: [B, T], already shifted: the token to be predicted at each place, or -100.
            position_ids: [B, T], restarting at 0 at every document.
            padding: bool[B, T], places that hold no token; None: there are none.
            logits: True: give those at the labelled places instead, [N, V] in fp32 or wider. What another model gave
                so: the sum is that of KL(it || model) in nats, 0 for the same logits.
            load: give a vector of the loss and how many tokens chose each expert, router by router, instead.
            pixel_values: the images of the rows' tokens, in order, for a model that reads images; none for `logits`.
        """
        if logits is not False:
            states = self._labelled(input_ids, labels, position_ids)
            if logits is True:
                starts = range(0, max(1, states.hidden.shape[0]), self.chunk)
                return torch.cat([states.logits(slice(start, start + self.chunk)) for start in starts])
            return chunked_kl(states, States(logits, None, None), 1.0, self.chunk)
        if self.apart:
            parts = documents_apart(input_ids, labels, position_ids)
            # Positions from 0 up in every row are what a model takes if it is given none.
            losses = [self._loss(self._states(self._causal[0], input_ids=ids), label) for ids, label in parts]
            return torch.stack(losses).sum()
        if self.one_row:
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values
        penalised = self.training and bool(self._penalties)
        states, router_logits = self._computed(self._causal[0], load or (penalised and self._balanced), **inputs)
        loss = self._loss(states, labels)
        if not (load or penalised):
            return loss
        padding = torch.zeros_like(labels, dtype=torch.bool) if padding is None else padding
        if load:
            assert self._routers is not None
            return torch.cat([loss[None], self._routers.load(router_logits, padding.reshape(-1)).reshape(-1)])
        batch = MicroBatch(
            model=self._causal[0],
            base=self._base[0],
            states=states,
            base_states=cache(torch.no_grad()(lambda: self._states(self._base[0], **inputs))),
            labels=labels.reshape(-1),
            padding=padding.reshape(-1),
            chunk=self.chunk,
            num_rows=len(labels),
            router_logits=router_logits,
        )
        return torch.stack([loss, *(_total(penalty, batch) for penalty in self._penalties.values())])

    def _labelled(self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor) -> States:
        """Of the labelled places."""
        if self.apart:
            parts = documents_apart(input_ids, labels, position_ids)
            found = [(self._states(self._causal[0], input_ids=ids), label) for ids, label in parts]
            kept = [one.at(label.reshape(-1) != IGNORED).hidden for one, label in found]
            return replace(found[0][0], hidden=torch.cat(kept))
        if self.one_row:
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        states = self._states(self._causal[0], input_ids=input_ids, position_ids=position_ids)
        return states.at(labels.reshape(-1) != IGNORED)

    def _states(self, causal: Any, **inputs: Any) -> States:
        """Of all places."""
        return self._computed(causal, False, **inputs)[0]

    def _computed(self, causal: Any, routed: bool, **inputs: Any) -> tuple[States, list[torch.Tensor]]:
        """Of all places; and, if asked for, the routers' logits [X, E] from the bottom."""
        inputs |= {"use_cache": False, **({"output_router_logits": True} if routed else {})}
        output = (causal if self._head is None else decoder_of(causal))(**inputs)
        logits = [one.flatten(0, -2) for one in output.router_logits] if routed else []
        if self._head is None:
            return States(output.logits.flatten(0, 1), None, None), logits
        last = causal.get_output_embeddings()
        return States(output[0].flatten(0, 1), last.weight, last.bias, self._head), logits

    def _loss(self, states: States, labels: torch.Tensor) -> torch.Tensor:
        kept = labels.reshape(-1) != IGNORED
        labels_N, states = labels.reshape(-1)[kept], states.at(kept)
        # Positions without a label never reach the vocabulary: most of a chat's tokens.
        if self._head is None:
            return nn.functional.cross_entropy(states.hidden.float(), labels_N, reduction="sum")
        return chunked_cross_entropy(states, labels_N, self.chunk)


def _total(penalty: Penalty, batch: MicroBatch) -> torch.Tensor:
    """Without a gradient where the weight is 0: it is then measured, and no bit of the training differs."""
    with torch.set_grad_enabled(penalty.weight != 0 and torch.is_grad_enabled()):
        return penalty.total(batch)
