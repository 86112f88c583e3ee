"""Which of the answers of all images is the likeliest for each held-out one, beside a linear probe of the same patches.

Shapes: N images, T tokens, V vocabulary, A answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.data.corpus import read_sources
from pipeline.data.images import HELD_OUT, Layout, open_images, pixels_of
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash
from pipeline.evaluation.tasks.gold import ScoredOption, gold_loss

if TYPE_CHECKING:  # a request is checked without
    import torch

METRIC, PROBE = "acc", "linear_probe"


@dataclass(frozen=True)
class HeldOutImages:
    """Accuracy over the held-out images of prepared data.

    A model answers with that of the data's answers whose log-probability after image and question is highest. Its
    baseline is what the patches tell without it: softmax regression on the pixels of the training images (see
    `linear_probe`), as a part of each item, with the difference to the model in a note.

    Attributes:
        max_items: images to score, those with the smallest content hashes; None: all.
        batch_size: images at once.
    """

    max_items: int | None
    batch_size: int
    scores_gold: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("max_items", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item for each held-out image: 1 if the likeliest answer is the right one.

        Raises:
            ValueError: the model reads no images, or data of another kind are given.
        """
        from pipeline.evaluation.vision.linear_probe import probe_answers

        if inputs.data is None or (manifest := read_sources(inputs.data))["kind"] != "image":
            raise ValueError("held-out images need data of images: set the benchmark's data to such, as pretrain.data")
        if not hasattr(model.config, "image_token_id"):
            raise ValueError(f"{type(model).__name__} is a text model and reads no images; see expand=visual_experts")
        answers, held = manifest["answers"], _parts(inputs.data, HELD_OUT)
        chosen = _smallest(held, self.max_items)
        images, golds = pixels_of(held.images[chosen]), [answers.index(held.answers[one]) for one in chosen]
        train = _parts(inputs.data, None)
        inputs.progress(note="fitting the linear probe")
        known = [answers.index(one) for one in train.answers]
        flat = (one.reshape(len(one), -1) for one in (pixels_of(train.images), images))
        probed = probe_answers(next(flat), known, next(flat), len(answers))
        scores_NA = _scores(model, Layout.recorded(manifest, tokenizer), answers, images, self.batch_size, inputs)
        items = [
            _item(held.ids[number], held.images[number], manifest["question"], answers, row.tolist(), gold, guess)
            for number, row, gold, guess in zip(chosen, scores_NA, golds, probed, strict=True)
        ]
        return Outcome(METRIC, True, tuple(items), (_note(items, len(train.ids)),))


@dataclass(frozen=True)
class _Images:
    ids: list[str]
    answers: list[str]
    images: np.ndarray


def _parts(data: Path, part: str | None) -> _Images:
    """The images of all sources, of the part held out or of that to train on."""
    names = [f"{name}.{part}" if part else name for name in read_sources(data)["sources"]]
    texts = [(data / f"{name}.jsonl").read_text(encoding="utf-8") for name in names]
    said = [json.loads(line) for text in texts for line in text.split("\n") if line]  # an answer may hold U+2028
    images = np.concatenate([open_images(data, name) for name in names])
    return _Images([one["id"] for one in said], [one["answer"] for one in said], images)


def _hash(image: np.ndarray, answer: str) -> str:
    return content_hash(image.tobytes().hex(), answer)


def _smallest(held: _Images, limit: int | None) -> list[int]:
    pairs = zip(held.images, held.answers, strict=True)
    hashes = sorted((_hash(image, answer), number) for number, (image, answer) in enumerate(pairs))
    return sorted(number for _, number in hashes[:limit])


def _scores(
    model: Any, layout: Layout, answers: Sequence[str], images: np.ndarray, batch_size: int, inputs: Workspace
) -> torch.Tensor:
    """Log-probabilities [N, A]: rows of equal tokens and different images, once for each begin that answers have."""
    import torch

    before = layout.pair(answers[0])[0]
    options = [layout.pair(answer)[1] for answer in answers]
    if any(layout.pair(answer)[0] != before for answer in answers):
        raise ValueError("the question's tokens depend on the answer; end data.question with a word or a colon")
    found = []
    for start in range(0, len(images), batch_size):
        inputs.progress(step=start, total=len(images))
        batch = torch.from_numpy(images[start : start + batch_size]).to(model.device)
        with torch.inference_mode():
            found.append(torch.stack(list(_of_batch(model, before, options, batch)), dim=1).cpu())
    return torch.cat(found)


def _of_batch(model: Any, before: list[int], options: list[list[int]], images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each option the log-probability [N] after each image."""
    import torch

    known: dict[tuple[int, ...], torch.Tensor] = {}
    for option in options:
        begin = tuple(option[:-1])
        if begin not in known:
            ids_T = torch.tensor([*before, *begin], device=images.device)
            output = model(
                input_ids=ids_T.expand(len(images), -1), pixel_values=images, use_cache=False,
                logits_to_keep=len(option),
            )  # fmt: skip
            known[begin] = output.logits.double().log_softmax(-1)
        places = torch.arange(len(option), device=images.device)
        yield known[begin][:, places, torch.tensor(option, device=images.device)].sum(1)


def _item(
    identity: str,
    image: np.ndarray,
    question: str,
    answers: Sequence[str],
    scores: Sequence[float],
    gold: int,
    guess: int,
) -> Item:
    pick = scores.index(max(scores))
    options = [ScoredOption(answer, score) for answer, score in zip(answers, scores, strict=True)]
    return Item(
        identity,
        _hash(image, answers[gold]),
        float(pick == gold),
        1.0,
        answers[gold],
        f"[image] {question}",
        answers[pick],
        answers[gold],
        {PROBE: (float(guess == gold), 1.0)},
        gold_loss(options, {gold}),
    )


def _note(items: Sequence[Item], num_train: int) -> str:
    """The probe's accuracy, and the difference to it over the same images with its 95 % interval."""
    right = [item.parts[PROBE][0] for item in items]
    differences = [item.numerator - probe for item, probe in zip(items, right, strict=True)]
    mean = math.fsum(differences) / len(items)
    variance = math.fsum((one - mean) ** 2 for one in differences) / max(1, len(items) - 1)
    half = 1.96 * math.sqrt(variance / len(items))
    return (
        f"A linear probe of the same patches, trained on the same {num_train} images, is right in "
        f"{math.fsum(right) / len(items):.1%}; the model beside it {100 * mean:+.1f} points "
        f"(95 % CI {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f}, normal, over the same images)."
    )
