"""A chain of TRACE's tasks on a tiny model, from files of the published form to the report's heat map."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TASKS = {"fomc": ("FOMC", "Stance:", "A"), "numglue_cm": ("NumGLUE-cm", "Answer:", "7")}
LEFT_OUT = ("c_stance", "meetingbank", "py150", "science_qa", "numglue_ds", "twenty_minuten")


@pytest.fixture
def files(tmp_path) -> Path:
    """Two tasks that ask alike and want different answers: the second cannot be learned and the first be kept."""
    folder = tmp_path / "trace"
    for name, end, answer in TASKS.values():
        (folder / name).mkdir(parents=True)
        for split, size in (("train", 48), ("eval", 2), ("test", 8)):
            rows = [{"prompt": f"{split} {i}\n{end}", "answer": answer} for i in range(size)]
            (folder / name / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def run(monkeypatch, capfd, files, tmp_path):
    """Run the experiment here, with two tasks; returns what was shown."""
    import pipeline.__main__ as driver

    def run(*arguments: str, expect: int = 0) -> str:
        settings = {
            "experiment": "trace", "paths.trace": files, "model": "tiny", "launch": "inprocess", "launch.cpu": "true",
            "launch.threads": 1, "paths.outputs": tmp_path / "outputs", "expand.num_groups": 2,
            "report.num_bootstrap": 500, "sft.seq_len": 64, "sft.batch_size": 4, "sft.lr": 1e-2,
            "sft.precision": "fp32", "lineage.lora.with.lr": 3e-2,
        }  # fmt: skip
        settings |= {f"lineage.{name}.chain": "[fomc,numglue_cm]" for name in ("seqft", "blocks")}
        settings |= {f"{place}.{task}.num_epochs": 10 for task in TASKS for place in ("tasks", "lineage.lora.chain")}
        settings |= {f"benchmark.{task}.max_new_tokens": 4 for task in TASKS}
        gone = [f"~{place}.{task}" for task in LEFT_OUT for place in ("tasks", "benchmark", "lineage.lora.chain")]
        given = [f"{key}={value}" for key, value in settings.items()]
        monkeypatch.setattr("sys.argv", ["pipeline", *given, *gone, *arguments])
        status = driver.run()
        shown = "".join(capfd.readouterr())
        assert status == expect, shown
        return shown

    return run


@pytest.mark.slow
def test_three_strategies_learn_two_tasks(run, tmp_path):
    """R, OP and BWT of the report are what the scores of the evaluations come to by hand."""
    fresh = [
        "+lineage.blocks.with.lr=3e-2",
        "+lineage.blocks.before={stage: expand}",
        "lineage.blocks.from=base",
        "lineage.expanded=null",
        "+lineage.blocks.replay=8",
    ]
    shown = run(*fresh)
    outputs = tmp_path / "outputs"
    evaluated = [json.loads(file.read_text()) for file in outputs.glob("artifacts/evaluate/*/manifest.json")]
    value = {tuple(one["label"].split("/")[1:]): one["metrics"]["value"] for one in evaluated}
    summary, *matrices = json.loads((outputs / "reports/trace/data.json").read_text())["continual"]
    assert [one["chain"] for one in matrices] == ["seqft", "lora", "blocks"]
    for one in matrices:
        name, (first, second) = one["chain"], TASKS
        before, learned, last = one["models"]
        assert (before, learned, last) == (
            "blocks-fomc-expand" if name == "blocks" else "base", f"{name}-{first}", f"{name}-{second}",
        )  # fmt: skip
        assert one["scores"] == [[value[model, task] for task in TASKS] for model in (before, learned, last)]
        op = (value[last, first] + value[last, second]) / 2
        bwt = value[last, first] - value[learned, first]
        found = {key: measure["value"] for key, measure in summary["chains"][name].items()}
        assert found == pytest.approx(
            {
                "op": op,
                "bwt": bwt,
                "fwt": value[learned, second] - value[before, second],
                "forgetting": -bwt,
                "la": (value[learned, first] + value[last, second]) / 2,
            }
        )
    seqft = matrices[0]["scores"]
    assert seqft[0] == [0.0, 0.0] and seqft[1][0] > 0.5 and seqft[2][1] > 0.5, seqft
    assert len(list((outputs / "reports/trace").glob("tasks-*.png"))) == 3
    assert "What was learned, and what later tasks left of it" in shown
    page = (outputs / "reports/trace/index.html").read_text()
    assert page.count("Task by task: ") == 3 and "Scores of seqft task by task" in page

    data = {p.parent.name: json.loads(p.read_text()) for p in outputs.glob("artifacts/data/*/sources.json")}
    replayed = [one["sources"] for one in data.values() if "fomc-trace" in one["sources"]]
    assert [one["fomc-trace"]["documents"] for one in replayed] == [8]
    adapters = list(outputs.glob("artifacts/sft/lora-*/adapter.safetensors"))
    assert len(adapters) == 2
    assert "0 to build" in run(*fresh, "dry_run=true")


def test_the_experiment_names_what_is_missing(run, tmp_path):
    (tmp_path / "trace" / "FOMC" / "test.json").unlink()
    assert "FOMC" in run("dry_run=true", expect=1)
    assert "'gone', which is not a key of tasks" in run("dry_run=true", "lineage.seqft.chain=[fomc,gone]", expect=1)
