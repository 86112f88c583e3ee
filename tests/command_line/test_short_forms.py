"""Short forms of the command line: each is the run of its long form, in sweeps too, and mistakes get an answer."""

from __future__ import annotations

import json
import sys

import pytest
from omegaconf import OmegaConf

import pipeline.__main__ as driver
from pipeline.command_line.arguments import arrange
from pipeline.command_line.selection import STRATEGY, settle
from pipeline.command_line.short_forms import FORMS, lengthened, literal_paths, settings_of
from pipeline.engine.errors import ConfigError
from pipeline.engine.sources.kinds import sources
from pipeline.lineage.build import build
from pipeline.lineage.entries import BUDGETS
from pipeline.lineage.variant import Variant

TEXT, CHATS = "pretrain.data.sources.local.origin.source.path", "sft.data.sources.local.origin.source.path"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def planned(monkeypatch, tmp_path, make_model, capsys):
    """What the driver would run for a command line: a variant for each cell. Run beside some files."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("words to learn")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    (tmp_path / "a model (1)").symlink_to(make_model())
    (tmp_path / "model").symlink_to(make_model())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    hashes = tmp_path.parent / "hashes"  # of the files that the configs name, read by one test for all

    def plan(*arguments: str) -> list[Variant]:
        found: list[Variant] = []

        def note(config, name, overrides, display=None) -> None:
            found.append(build(config, name, hashes))

        monkeypatch.setattr(driver, "run_variant", note)
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments, "dry_run=true", f"paths.outputs={tmp_path / 'out'}"])
        assert driver.run() == 0, capsys.readouterr().err
        return found

    return plan


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """The driver's answer to a command line that it refuses before any work."""

    def run(*arguments: str) -> str:
        places = [f"paths.outputs={tmp_path / 'out'}", f"paths.cache={tmp_path.parent / 'hashes'}"]
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments, *places])
        assert driver.run() == 1
        answer = capsys.readouterr().err
        assert "Traceback" not in answer and not list((tmp_path / "out").glob("artifacts/*/*"))
        return answer

    return run


def only(section: str, budget: str) -> list[str]:
    """Overrides for a length in this budget alone."""
    others = [key for key in BUDGETS if key != budget.partition("=")[0]]
    return [f"{section}.{budget}", *(f"{section}.{key}=null" for key in others)]


def graph(variant: Variant) -> dict[str, str]:
    """Everything that a variant makes, by name, and what it is called."""
    evaluations = {f"{m}/{b}": node for m, found in variant.evaluations.items() for b, node in found.items()}
    nodes = {**variant.models, **variant.data, **evaluations}
    return {"": variant.name} | {name: node.fingerprint for name, node in nodes.items()}


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["model=./model"], ["model=local", "model.source.path=./model"]),
        (["model=~/model"], ["model=local", 'model.source.path="~/model"']),
        (["model=./a model (1)"], ["model=local", 'model.source.path="./a model (1)"']),
        ([f"model=a/b-1.5B@{COMMIT}"], ["model=hub", "model.source.repo=a/b-1.5B", f"model.source.revision={COMMIT}"]),
        (["model=a/b"], ["model=hub", "model.source.repo=a/b"]),
        (["data=./corpus"], ["data@pretrain.data=local_text", f"{TEXT}=./corpus"]),
        (["data@pretrain.data=./corpus"], ["data@pretrain.data=local_text", f"{TEXT}=./corpus"]),
        (["data=a/b"], ["data@pretrain.data=hub_text", "pretrain.data.sources.hub.origin.source.repo=a/b"]),
        (["data=local_text", f"{TEXT}=corpus"], ["data@pretrain.data=local_text", f"{TEXT}=corpus"]),
        (["chats=./chats.jsonl"], ["data@sft.data=local_chat", f"{CHATS}=./chats.jsonl"]),
        (["chats=a/b"], ["data@sft.data=hub_chat", "sft.data.sources.hub.origin.source.repo=a/b"]),
        (["strategy=lora"], ["strategy@pretrain.strategy=lora"]),
        (["pretrain.num_steps=10"], only("pretrain", "num_steps=10")),
        (["sft.num_epochs=2"], only("sft", "num_epochs=2")),
        (["experiment=null"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_short_form_is_the_run_of_its_long_one(planned, short, long):
    (one,), (other,) = planned(*short, "stage=pretrain"), planned(*long, "stage=pretrain")
    assert graph(one) == graph(other)


@pytest.mark.parametrize(
    ("model", "blocks", "settings"),
    [
        ([], 10, ["expand.num_groups=10"]),
        ([], 8, ["expand.num_groups=8", "expand.strict=false"]),
        (["model=./model"], 4, ["expand.num_groups=4"]),
        (["experiment=llama_pro"], 16, ["expand.num_groups=16"]),
        (["expand=adept"], 3, ["expand.num_new_blocks=3"]),
        (["expand=lesa"], 5, ["expand.num_groups=5"]),
    ],
)
def test_new_blocks_may_be_counted_in_all(planned, model, blocks, settings):
    (one,), (other,) = planned(*model, f"expand.num_blocks={blocks}"), planned(*model, *settings)
    assert one.models["expanded"] == other.models["expanded"]


@pytest.mark.parametrize(
    ("option", "groups"), [("smollm2_135m", 6), ("llama2_7b", 8), ("mistral_7b", 8), ("qwen3_0_6b", 7), ("tiny", 2)]
)
def test_groups_follow_the_model(planned, option, groups):
    (variant,) = planned(f"model={option}", "pretrain.seq_len=64", "benchmark=[]")
    assert variant.models["expanded"].params["method"]["num_groups"] == groups


def test_forms_of_several_kinds_stand_in_one_sweep(planned):
    cells = planned("-m", "model=a/b@v1,tiny,./model", "stage=base")
    alone = [planned(f"model={one}", "stage=base")[0] for one in ("a/b@v1", "tiny", "./model")]
    assert list(map(graph, cells)) == list(map(graph, alone)) and len({cell.name for cell in cells}) == 3


def test_a_budget_steps_back_in_every_cell(planned):
    cells = planned("-m", "pretrain.num_steps=10,20", "sft.num_steps=1")
    found = [(c.models["post-pretrained"].params, c.models["tuned"].params) for c in cells]
    assert [(a["num_steps"], a["num_tokens"], b["num_tokens"]) for a, b in found] == [
        (10, None, None),
        (20, None, None),
    ]


@pytest.mark.parametrize("chosen", [["benchmark=[domain]"], ["benchmark=[]"], ["model=tiny"], ["experiment=llama_pro"]])
def test_a_benchmark_may_be_added_to_whatever_is_chosen(planned, chosen):
    (before,), (after,) = planned(*chosen), planned(*chosen, "+benchmark=[positions,blocks]")
    assert set(after.evaluations["tuned"]) - set(before.evaluations["tuned"]) == {"positions", "blocks"}
    assert set(before.evaluations["tuned"]) < set(after.evaluations["tuned"])


def test_a_sweep_may_hold_the_run_without_an_experiment(planned):
    cells = planned("-m", "experiment=null,full_finetuning,lora")
    assert [cell.name for cell in cells] == ["default", "experiment=full_finetuning", "experiment=lora"]
    assert graph(cells[0]) == graph(planned()[0])


def test_the_strategy_follows_an_expansion_that_is_left_out(planned):
    cells = planned("-m", "expand=block,none")
    targets = [cell.models["post-pretrained"].params["strategy"]["_target_"] for cell in cells]
    assert [target.rpartition(".")[2] for target in targets] == ["NewBlocks", "Full"]
    assert planned("expand=none", "strategy=full")[0].models == cells[1].models
    (lora,) = planned("expand=none", "strategy=lora")
    assert lora.models["post-pretrained"].params["strategy"]["_target_"].endswith("Lora")
    assert list(planned("expand=none", "pretrain=none")[0].models) == ["base", "tuned"]


@pytest.mark.parametrize("experiment", ["llama_pro", "num_blocks"])
def test_a_chosen_method_wins_over_an_experiments_keys_of_another(planned, recwarn, experiment):
    (variant,) = planned(f"experiment={experiment}", "expand=soft_moe")
    assert variant.models["expanded"].params["method"] == {
        "_target_": "pipeline.expansion.methods.soft_moe.SoftMoe", "mode": "exact",
    }  # fmt: skip
    assert any("num_groups" in str(one.message) and "left out" in str(one.message) for one in recwarn)


def test_what_the_chosen_method_has_too_stays_as_the_experiment_says(planned, recwarn):
    (variant,) = planned("experiment=llama_pro", "expand=lesa")
    assert variant.models["expanded"].params["method"]["num_groups"] == 8
    assert "expand.num_groups" not in "".join(str(one.message) for one in recwarn)


def test_one_typed_block_count_wins_over_an_experiments_sweep(planned):
    assert len(planned("experiment=num_blocks")) == 5
    (variant,) = planned("experiment=num_blocks", "expand.num_blocks=7")
    assert variant.models["expanded"].params["method"]["num_groups"] == 7


def test_a_budget_that_an_experiment_gives_makes_the_others_step_back(planned, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for name, text in {"one": "{num_steps: 7}", "none": "{lr: 5.0e-4}", "typed": "{num_epochs: 2}"}.items():
        (tmp_path / "conf" / "experiment" / f"my_{name}.yaml").write_text(f"# @package _global_\npretrain: {text}\n")
    mine = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    cells = planned("-m", mine, "experiment=my_one,my_none", "stage=pretrain")
    (typed,) = planned(mine, "experiment=my_typed", "pretrain.num_steps=3", "stage=pretrain")
    found = [cell.models["post-pretrained"].params for cell in [*cells, typed]]
    budgets = [(one["num_steps"], one["num_tokens"], one["num_epochs"]) for one in found]
    assert budgets == [(7, None, None), (None, 24576, None), (3, None, None)]


def test_a_typed_path_wins_over_an_experiments_and_its_keys_of_other_data_go(planned, tmp_path, recwarn):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /data@pretrain.data: local_text\n"
        "pretrain:\n  lr: 5.0e-4\n  data:\n    sources:\n"
        "      stdlib: {weight: 2}\n      local: {weight: 3, origin: {source: {path: /no}}}\n"
        "benchmark: {piqa: {limit: 3}, domain: {max_items: 7}}\n"
    )
    mine = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=mine"]
    (variant,) = planned(*mine, "data=./corpus", "benchmark=[domain]", "benchmark.domain.group=x")
    data = variant.data["data/pretrain"].params["data"]
    assert list(data["sources"]) == ["local"] and data["sources"]["local"]["weight"] == 3
    assert variant.models["post-pretrained"].params["lr"] == 5e-4
    (scores,) = variant.evaluations["tuned"].values()
    assert scores.params["benchmark"]["max_items"] == 7
    told = "".join(str(one.message) for one in recwarn)
    assert "sets pretrain.data.sources.stdlib, which data@pretrain.data=local_text does not have" in told
    assert "sets benchmark.piqa, which benchmark=[domain] does not have" in told


def test_a_tiny_model_brings_small_companions_that_need_no_network(planned):
    (variant,) = planned("model=tiny")
    assert list(variant.models) == ["base", "expanded", "post-pretrained", "tuned"]
    assert {"domain", "dialogue", "drift"} == set(variant.evaluations["tuned"])
    nodes = [*variant.models.values(), *variant.data.values(), *variant.evaluations["tuned"].values()]
    assert not [node for node in nodes for kind in ("package", "hub") if list(sources(node.params, kind))]
    (chosen,) = planned("model=tiny", "sft=none", "data=./corpus", "benchmark=[domain]", "pretrain.num_steps=3")
    assert set(chosen.evaluations["base"]) == {"domain"} and chosen.models["post-pretrained"].params["seq_len"] == 128


@pytest.mark.slow
def test_a_tiny_model_goes_all_the_way(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pipeline", "model=tiny", "launch=inprocess", f"paths.outputs={tmp_path}"])
    assert driver.run() == 0, capfd.readouterr().err
    scores = {}
    for file in tmp_path.glob("artifacts/evaluate/*/manifest.json"):
        manifest = json.loads(file.read_text())
        scores[manifest["label"]] = manifest["metrics"]["value"]
    assert scores["evaluate/post-pretrained/domain"] < scores["evaluate/base/domain"]
    assert scores["evaluate/tuned/dialogue"] < scores["evaluate/base/dialogue"]
    assert scores["evaluate/expanded/drift"] == 0 and (tmp_path / "reports" / "demo" / "index.html").is_file()


@pytest.mark.slow
def test_a_single_question_of_ones_own_goes_all_the_way(monkeypatch, capfd, tmp_path):
    """One item has no standard error, which the report says instead of failing after the work."""
    rows = [{"question": f"Which {i}?", "options": ["this", "that"], "answer": "this"} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["model=tiny", "expand=none", "sft=none", "benchmark=[]", "pretrain.num_steps=1"]
    own = ["+benchmark=own", f"benchmark.own.path={tmp_path / 'q.jsonl'}", "benchmark.own.limit=1"]
    monkeypatch.setattr(sys, "argv", ["pipeline", *small, *own, f"paths.outputs={tmp_path}"])
    assert driver.run() == 0, capfd.readouterr().err
    found = [json.loads(file.read_text())["metrics"] for file in tmp_path.glob("artifacts/evaluate/*/manifest.json")]
    assert [(one["n"], one["stderr"]) for one in found] == [(1, None)] * 2
    assert "Own questions" in (tmp_path / "reports" / "demo" / "report.md").read_text()


def test_a_question_file_is_a_benchmark(planned, tmp_path):
    rows = [{"question": f"Q{i}", "options": ["a", "b"], "answer": "b"} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["+benchmark=own", "benchmark.own.path=./q.jsonl"]
    (variant,) = planned(*own)
    assert {"own", "domain", "piqa"} <= set(variant.evaluations["base"])
    assert str(tmp_path) not in json.dumps(variant.evaluations["base"]["own"].params)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["data=https://huggingface.co/datasets/a/b"], "is an address; write data=a/b"),
        (["model=https://huggingface.co/a/b"], "is an address; write model=a/b"),
        (["data=a/b/c"], "is neither a path, which begins with ./"),
        (["model=a/b@"], "a name of the Hub, which is ORG/NAME or ORG/NAME@REVISION"),
        (["data=corpos"], "data has no 'corpos'"),
        (["data=corpos"], "text to post-pretrain on: data=./path or data=ORG/NAME"),
        (["model=gpt5"], "the model that is grown: model=./path or model=ORG/NAME"),
        (["strategy=lara"], "strategy has no 'lara'; did you mean lora?"),
        (["chat=./x"], "chat is not a key of the config; did you mean chats?"),
        (["num_steps=3"], "did you mean pretrain.num_steps or sft.num_steps"),
        (["model=./nothing"], "nothing: no such directory; give a directory that save_pretrained wrote"),
        (["data=./nothing"], "nothing does not exist; correct the path"),
        (
            ["pretrain.num_steps=3", "pretrain.num_tokens=9"],
            "exactly one of num_steps, num_tokens, num_epochs",
        ),
        (["expand.num_blocks=8", "expand.num_groups=2"], "expand.num_groups cannot be given beside it"),
        (["expand.num_blocks=31"], "num_blocks=31 is more than the model's 30 blocks"),
        (["expand.num_blocks=two"], "num_blocks='two' must be a whole number"),
        (["expand.num_blocks=2", "expand.position=explicit"], "num_blocks=2 is not read with position=explicit"),
        (
            ["pretrain=none", "strategy=lora"],
            "pretrain is left out (pretrain=none), so strategy@pretrain.strategy=lora",
        ),
        (["expand=none", "strategy=new_blocks"], "its model was not expanded"),
        (["pretrain.strategy=lora"], "such as strategy@pretrain.strategy=lora"),
        (
            ["+benchmark.humaneval.limit=3"],
            "humaneval is not among the chosen benchmarks; add it: +benchmark=humaneval",
        ),
        (["pretrain.replay=0.1"], "replay=0.1 asks for general text, but the data has none"),
        (["+benchmark=paper"], "paper cannot be added with a +; name it in the list: benchmark=[domain,paper]"),
        (["+benchmark=own"], "benchmark.own.path must be given"),
        (["+benchmark=own", "benchmark.own.path=./no.jsonl"], "no.jsonl does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_before_any_work(refused, typed, answer):
    assert answer in refused(*typed)


def test_a_bad_row_of_ones_own_questions_is_refused_before_any_work(refused, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "Q", "options": ["a", "b"], "answer": "b"}\n{"question": "Q", "answer": null}\n')
    answer = refused("+benchmark=own", f"benchmark.own.path={file}")
    assert "evaluate/base/own" in answer and "q.jsonl, line 2: has no answer" in answer


def test_a_path_that_lies_here_without_its_dot_is_recognised(planned, tmp_path):
    with pytest.raises(ConfigError, match=r"data=corpus names no option; for the path write data=\./corpus"):
        lengthened(["data=corpus"])
    with pytest.warns(UserWarning, match=r"corpus/a\.txt is the Hub's corpus/a\.txt; .* write data=\./corpus/a\.txt"):
        lengthened(["data=corpus/a.txt"])


def test_benchmarks_of_a_stage_that_is_left_out_keep_its_data(planned):
    (variant,) = planned("benchmark=[dialogue]", "sft=none")
    assert "dialogue" in variant.evaluations["post-pretrained"]
    with pytest.warns(UserWarning, match=r"\+data@benchmark\.dialogue\.data=OPTION"):
        planned("benchmark=[dialogue]", "sft=none", "~data@sft.data")
    (named,) = planned(
        "benchmark=[dialogue]", "sft=none", "~data@sft.data", "+data@benchmark.dialogue.data=stdlib_chats"
    )
    assert "dialogue" in named.evaluations["base"]


@pytest.mark.parametrize(
    "typed", ["stage=base", "--cfg", "~sft", "model=glob(t*)", "expand=block", "-m", "benchmark=[domain]", "+x.y=1"]
)
def test_what_is_no_short_form_stays_as_it_is(typed):
    assert lengthened([typed]) == [typed]


def test_quotes_and_commas(tmp_path, monkeypatch):
    def read(*typed: str) -> list[str]:
        return [found for word in lengthened(arrange(literal_paths(typed))) for found in settings_of(word)]

    assert read("model=./a (b") == ["model=local", 'model.source.path="./a (b"']
    assert read('model="./a,b"') == ["model=local", 'model.source.path="./a,b"']
    assert lengthened(arrange(["-m", "model=choice(a/b,tiny)"]))[1].count(",") == 1
    with pytest.raises(ConfigError, match="gives several values"):
        read("model=./a,./b")


def test_the_help_names_every_short_form(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline", "--help"])
    assert driver.run() == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}=" in shown and form.means in shown for name, form in FORMS.items())
    assert all(one in shown for one in ("expand.num_blocks=8", "pretrain.num_steps=10", "+benchmark=own"))


@pytest.mark.parametrize("of_run, told", [({"expand": "block"}, True), ({"expand": "adept"}, False), ({}, True)])
def test_one_models_expansion_that_chooses_the_whole_runs_strategy_is_told(recwarn, of_run, told):
    settle(OmegaConf.create(), [], {"expand@lineage.a.with": "adept", STRATEGY: "adept", **of_run}, [])
    assert [str(one.message).startswith("a is made by expand=adept, so every model") for one in recwarn] == [
        True
    ] * told
    recwarn.clear()
    settle(OmegaConf.create(), [], {"expand@lineage.a.with": "adept", STRATEGY: "new_blocks", **of_run}, [])
    assert not recwarn
