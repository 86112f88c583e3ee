"""The report's first screen, and how its pages lie on a screen and on a phone."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from pipeline.engine.run.forecast import Request
from pipeline.reporting.axes import axes
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.answer import answer
from pipeline.reporting.pages.page import report_markdown
from pipeline.reporting.pages.samples import samples
from stages import report
from tests.reporting.browser import browser, find_browser
from tests.reporting.synthetic import (
    BENCHMARKS,
    MOVED,
    WRITTEN,
    Artifacts,
    chain,
    choice_items,
    none,
    one_variant,
    params,
    with_drift,
    with_samples,
    write_items,
)

CODE, QUESTION = "def is_prime(n: int) -> bool:\n    ", "Why is the <sky> blue?" + " long" * 60
TEXTS = {CODE: "return " + "x" * 300, QUESTION: "Because <b>it</b> is."}
PHONE, SCREEN = 400, 1200
NUMBER = r"[+−]?\d\.\d{4}"


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def compared(artifacts, variants, benchmarks=MOVED):
    collection = collect("a run", variants, {**benchmarks, **WRITTEN}, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=400, seed=0, power=0.8)


def three(artifacts):
    """New blocks, full fine-tuning and a third, all with drift and text samples."""
    found = [one_variant(artifacts), one_variant(artifacts, "experiment=full_finetuning", seed=3, full=True)]
    found.append(one_variant(artifacts, "experiment=lora", seed=5))
    moved = (
        with_drift(artifacts, one, far, i) for i, (one, far) in enumerate(zip(found, (0.06, 0.1, 0.15), strict=True))
    )
    return [with_samples(artifacts, one, TEXTS) for one in moved]


def test_the_first_sentence_states_gain_and_drift_with_intervals(artifacts):
    variant = with_drift(artifacts, one_variant(artifacts), 0.06, 1)
    comparison = compared(artifacts, [variant])
    line, text = comparison.lines[-1], answer(comparison)
    gain, drift = line.gains.domain, line.drift["moved"]["all"]
    assert text == (
        f"The tuned model learned the domain, +{gain.value:.4f} bits per byte (95 % CI +{gain.low:.4f} to "
        f"+{gain.high:.4f}), and moved {drift.value:.4f} nats per token (95 % CI {drift.low:.4f} to {drift.high:.4f}) "
        "away from the base."
    )
    assert report_markdown(comparison).splitlines()[2] == f"**{text}**"


def test_without_drift_the_sentence_says_what_was_kept(artifacts):
    text = answer(compared(artifacts, [one_variant(artifacts)]))
    assert "what the base could do changed by " in text and "percentage points (95 % CI " in text and "nats" not in text


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({"domain_text": 0.05}, "The post-pretrained model learned the domain, +0.05"),
        ({"domain_text": -0.05}, "got worse on the domain, −0.04"),
        ({"domain_text": 0.0}, "is unchanged on the domain, exactly 0 bits per byte"),
        ({"sciq": 0.0}, "This variant has no expanded model"),
    ],
)
def test_the_sentence_says_what_is_true(artifacts, gains, says):
    rows = [artifacts.row("base", "smol", "base", none(*gains))]
    rows.append(artifacts.row("post-pretrained", "p", "pretrain", gains, seed=1))
    text = answer(compared(artifacts, [chain("default", rows)]))
    assert says in text and ("what that cost was not measured" in text) == ("domain_text" in gains)


def test_of_a_domain_measured_in_shares_the_sentence_says_how_those_changed(artifacts):
    rows = [artifacts.row("base", "smol", "base", none("sciq"))]
    rows.append(artifacts.row("post-pretrained", "p", "pretrain", {"sciq": 0.2}, seed=1))
    domain = {**BENCHMARKS, "sciq": {"title": "SciQ", "group": "domain", "note": ""}}
    text = answer(compared(artifacts, [chain("default", rows)], domain))
    assert re.fullmatch(r"The post-pretrained model changed on the domain by SciQ \+\d+\.\d points \[.*\]\.", text)


def test_other_variants_stand_beside_the_first(artifacts):
    comparison = compared(artifacts, three(artifacts))
    first, full, lora = answer(comparison).split("; ")
    assert first.startswith("default: the tuned model learned the domain, +")
    bounds = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"
    assert re.fullmatch(rf"full_finetuning: {bounds} and {bounds}", full) and lora.startswith("lora: +")


def test_of_many_variants_the_extremes_are_told(artifacts):
    variants = [one_variant(artifacts, f"sft.seed={i}", seed=i) for i in range(4)]
    variants.append(one_variant(artifacts, "expand=none", seed=3, full=True))
    drifts = (0.06, 0.07, 0.04, 0.05, 0.1)
    moved = [with_drift(artifacts, one, far, i) for i, (one, far) in enumerate(zip(variants, drifts, strict=True))]
    comparison = compared(artifacts, moved)
    first, most, least = answer(comparison).split("; ")
    labels = [comparison.labels[one["variant"]] for one in variants]
    assert first.startswith(f"{labels[0]}: the tuned model")
    assert most.startswith(f"most learned of 5, {labels[4]}: +") and least.startswith(
        f"best in drift of 5, {labels[2]}: +"
    )


def test_drift_is_the_first_axis_where_it_was_measured(artifacts):
    plain = compared(artifacts, [one_variant(artifacts)])
    moved = compared(artifacts, [with_drift(artifacts, one_variant(artifacts), 0.06, 1)])
    assert [axis.key for axis in axes(plain)] == ["retention"]
    assert [axis.key for axis in axes(moved)] == ["drift", "retention"]
    base, expanded, *trained = moved.lines
    axis = axes(moved)[0]
    assert axis.of(base) is None and axis.of(expanded).identical and all(axis.of(one).value > 0.05 for one in trained)


def test_base_and_last_model_are_shown_side_by_side(artifacts):
    comparison = compared(artifacts, three(artifacts)[:1])
    (found,) = samples(comparison)
    assert found.title == "Text samples" and [one.prompt for one in found.written] == [CODE, QUESTION]
    for one in found.written:
        assert one.texts == tuple((name, f"{TEXTS[one.prompt]} ({name})") for name in ("base", "tuned"))
    assert found.notes == ("base: Without answers to questions.", "tuned: Without answers to questions.")
    assert "written" not in comparison.units and all("written" not in line.scores for line in comparison.lines)
    assert f"    {CODE.splitlines()[0]}\n" in report_markdown(comparison)
    many = samples(compared(artifacts, three(artifacts)))[0].written[0].texts
    assert [label for label, _ in many] == ["base", "tuned · default", "tuned · full_finetuning", "tuned · lora"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports: one variant without drift, and three with drift, text samples and single items."""
    found = {}
    for name in ("plain", "three"):
        artifacts = Artifacts(tmp_path_factory.mktemp(name))
        variants = [one_variant(artifacts)] if name == "plain" else three(artifacts)
        for row in variants[0]["models"]:
            content = choice_items("sciq", 0.0, 200, 0)
            for item in content["items"]:
                item |= {"prompt": f"Question {item['id']}? " + "word" * 90, "answer": "y" * 200}
            write_items(artifacts.inputs[row["evaluations"]["sciq"]], content)
        asked = params(variants, benchmarks={**(BENCHMARKS if name == "plain" else MOVED), **WRITTEN})
        report.forecast(Request(asked))
        directory = found[name] = artifacts.root / "report"
        directory.mkdir()
        report.run(
            SimpleNamespace(
                directory=directory, params=asked, inputs=artifacts.inputs, is_main=True, progress=lambda **_: None
            )
        )
    return found


class Static(HTMLParser):
    """What can be told of a page's layout without a browser."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bare_tables, self.images, self.styles, self.viewport, self.order = [], 0, [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        classes = (found.get("class") or "").split()
        if tag == "table" and "scroll" not in [name for _, names in self.open for name in names]:
            self.bare_tables += 1
        if tag in ("img", "source"):
            self.images.append(found.get("src") or found["srcset"])
        if found.get("name") == "viewport":
            self.viewport = found["content"]
        self.styles += [found["style"]] if "style" in found else []
        self.order += [name for name in ("answer", "lead", "table", "prompt", "finding") if name in classes]
        if tag not in ("meta", "img", "source", "br", "input", "link"):
            self.open.append((tag, classes))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag


@pytest.mark.parametrize("name", ["plain", "three"])
def test_the_layout_fits_any_width(pages, name):
    text = (pages[name] / "index.html").read_text()
    page = Static(text)
    assert page.viewport == "width=device-width, initial-scale=1" and page.bare_tables == 0 and page.styles == []
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).startswith(b"<?xml")
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", text[text.index("<style>") : text.index("</style>")])
    fixed = [
        (selector.strip(), int(size))
        for selector, body in rules
        for size in re.findall(r"(?<![\w-])(?:min-)?width: *(\d+)px", body)
    ]
    assert [one for one in fixed if one[1] > PHONE - 32] == [("figure .scroll img", 600)]
    expected = ["answer", "lead", "table", *["prompt"] * (2 if name == "three" else 0), "finding"]
    assert list(page.order[: len(expected)]) == expected


@pytest.fixture(scope="module")
def opened():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine; `apt-get install chromium`")
    with browser(path) as found:
        yield found


FAULTY = (
    '<!doctype html><meta name="viewport" content="width=device-width"><style>body{margin:0}</style>'
    '<p class="x" style="width:900px">wide</p><img src="missing.png" alt=""><script>nothing()</script>'
)


def test_the_browser_sees_faults(opened, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY)
    seen = opened.look(tmp_path / "faulty.html", PHONE)
    assert seen.facts["scroll_width"] == 900 and seen.facts["too_wide"] == ["P.x: wide"]
    assert seen.facts["images"] == [[False, 0]]
    errors = "\n".join(seen.errors)
    assert "nothing is not defined" in errors and "not loaded" in errors


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [SCREEN, PHONE])
@pytest.mark.parametrize("page", ["plain/index.html", "three/index.html", "plain/items.html"])
def test_a_browser_shows_it_without_overflow_or_errors(opened, pages, page, width, dark):
    name, file = page.split("/")
    seen = opened.look(pages[name] / file, width, dark)
    facts = seen.facts
    assert seen.errors == [] and facts["width"] == facts["scroll_width"] == width and facts["too_wide"] == []
    assert facts["paper"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    assert all(loaded and shown > 300 for loaded, shown in facts["images"])
    if file == "index.html":
        assert len(facts["images"]) == (3 if name == "three" else 2) and all(facts["tables"])
        tops = dict(reversed([tuple(one) for one in facts["top"]]))
        assert tops["H1"] < tops["answer"] < tops["lead"] < tops["table"] and tops["lead"] < 420
