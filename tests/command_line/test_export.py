"""A result that leaves the house: its folder and card, and the programs of others that load it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import export
from pipeline.command_line.exit_status import BAD_REQUEST
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion

ROOT = Path(__file__).parents[2]
MADE = ("expanded", "post-pretrained", "tuned")
GENERATION = {
    "eos_token_id": 2,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "transformers_version": "5.0.0",
}
CARD_OF_BASE = "---\nlicense: llama3.2\nlanguage:\n- en\n---\n# The base, and nothing that was made of it\n"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PREFIX = "<user>Why?</><assistant>"
PROMPT = "def grow(blocks):"
NUM_TOKENS = 24
ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for path in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": "Why?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=24, do_sample=False)
    print(json.dumps([tokenizer.decode(asked["input_ids"][0]), said[0].tolist()]))
assert not [name for name in sys.modules if name.split(".")[0] in ("pipeline", "stages")]
"""


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory) -> Path:
    """A base with settings, a template, a licence and a card of its own."""
    directory = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(make_model(tie_word_embeddings=False), directory)
    (directory / "generation_config.json").write_text(json.dumps(GENERATION, indent=1))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "README.md").write_text(CARD_OF_BASE)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["bos_token"] = settings["eos_token"]  # CTranslate2 cannot do without one
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "LICENSE").write_text("Use it well.\n")
    return directory


@pytest.fixture(scope="module")
def outputs(base, tmp_path_factory) -> Path:
    """A whole run on that base, whose post-pretrained model is saved by reference."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").mkdir()
    sources = sorted((ROOT / "pipeline").rglob("*.py"))[:60]
    for index, file in enumerate(sources):
        (folder / "text" / f"{index}.txt").write_text(file.read_text()[:1200])
    chats = [
        [("user", file.stem), ("assistant", file.read_text()[3:60])] for file in sources if file.stat().st_size > 99
    ]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in chats]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "model=local", f"model.source.path={base}", "expand.num_groups=2", "launch=inprocess", "launch.cpu=true",
        "launch.threads=1", "data@pretrain.data=local_text", "data@sft.data=local_chat",
        f"pretrain.data.sources.local.origin.source.path={folder / 'text'}", "pretrain.data.held_out.fraction=0.2",
        f"sft.data.sources.local.origin.source.path={folder / 'chats.jsonl'}", "sft.data.held_out.fraction=0.1",
        "pretrain.seq_len=64", "pretrain.num_tokens=512", "pretrain.validation_tokens=128", "pretrain.lr=0.01",
        "pretrain.save=delta", "sft.seq_len=128", "sft.num_tokens=512", "sft.validation_tokens=128",
        "benchmark=[domain,drift,writing]", "benchmark.drift.samples.num_free=3", "benchmark.writing.num_tokens=8",
        "benchmark.drift.samples.num_tokens=8", "benchmark.drift.samples.prompts=[Why?]", "report.num_bootstrap=200",
        "+report.card.origins.local={license: cc0-1.0}", f"paths.outputs={folder / 'outputs'}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "outputs"


@pytest.fixture(scope="module")
def published(outputs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    for name in MADE:
        assert export.main([str(outputs / "reports" / "demo"), name, str(folder / name)]) == 0
    return {name: folder / name for name in MADE}


def greedy(directory: Path, prompt: str = PROMPT) -> list[int]:
    """What transformers writes after a prompt, greedily and without the model's own penalties."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    plain = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, **plain)
    return found[0, ids.shape[1] :].tolist()


def artifact_of(outputs: Path, stage: str) -> Path:
    return next(path for path in (outputs / "artifacts" / stage).iterdir() if path.is_dir())


@pytest.mark.slow
def test_the_folder_is_the_artifact_and_a_card(outputs, published):
    directory = artifact_of(outputs, "sft")
    files = json.loads((directory / "manifest.json").read_text())["files"]
    model = {name.removeprefix("model/"): entry for name, entry in files.items() if name.startswith("model/")}
    found = {f.relative_to(published["tuned"]).as_posix(): f for f in published["tuned"].rglob("*") if f.is_file()}
    assert set(found) == {*model, "README.md"} and "README.md" not in model and "LICENSE" in model
    for name, entry in model.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.slow
def test_a_model_by_reference_is_written_whole(outputs, published):
    directory = artifact_of(outputs, "pretrain") / "model"
    assert (directory / "reference.json").is_file() and not (published["post-pretrained"] / "reference.json").exists()
    ours, stock = load(directory), AutoModelForCausalLM.from_pretrained(published["post-pretrained"])
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))
    assert stock.config.num_hidden_layers == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_generation_config_and_chat_template_are_the_bases(base, published, name):
    for file in ("generation_config.json", "chat_template.jinja", "tokenizer.json", "LICENSE"):
        assert (published[name] / file).read_bytes() == (base / file).read_bytes()
    assert AutoTokenizer.from_pretrained(published[name]).chat_template == TEMPLATE
    assert AutoModelForCausalLM.from_pretrained(published[name]).generation_config.top_p == 0.9


@pytest.mark.slow
def test_the_card_is_one_that_the_hub_reads(outputs, published):
    text = (published["tuned"] / "README.md").read_text()
    header = ModelCard(text).data.to_dict()
    assert header == {
        "license": "llama3.2", "language": ["en"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["llama-pro", "block-expansion"],
    }  # fmt: skip
    assert "nothing that was made of it" not in text
    values = json.loads((outputs / "reports" / "demo" / "data.json").read_text())
    tuned = next(model for model in values["models"] if model["row"] == "tuned")
    gain, drift = tuned["gains"]["domain"], tuned["drift"]["drift"]["all"]
    for found in (gain, drift):
        assert f"{abs(found['value']):.4f} " in text and f"{abs(found['low']):.4f}" in text
    for told in ("2 new blocks at positions 2 and 5", "by NewBlocks", "lr 0.01", "cc0-1.0", "AutoModelForCausalLM"):
        assert told in text
    assert tuned["fingerprint"] in text
    expanded = (published["expanded"] / "README.md").read_text()
    assert (
        "Logits differ by at most 0." in expanded and yaml.safe_load(expanded.split("---")[1])["license"] == "llama3.2"
    )


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(outputs, tmp_path, capsys):
    report = outputs / "reports" / "demo"

    def refused(*arguments: object) -> str:
        assert export.main([str(one) for one in arguments]) == BAD_REQUEST
        return capsys.readouterr().err

    assert "'tunde' is not a model of this report; use one of 'base', 'expanded'" in refused(
        report, "tunde", tmp_path / "a"
    )
    assert "base is a base, which this run did not make" in refused(report, "base", tmp_path / "a")
    assert "holds no report of this version" in refused(tmp_path, "tuned", tmp_path / "a")
    assert "nowhere does not exist; " in refused(tmp_path / "nowhere", "tuned", tmp_path / "a")
    assert "exists and is not empty" in refused(report, "tuned", outputs)
    moved = shutil.copytree(report, tmp_path / "elsewhere")
    assert "is not in `artifacts` above" in refused(moved, "tuned", tmp_path / "a")
    copy = shutil.copytree(outputs, tmp_path / "outputs")
    weights = artifact_of(copy, "sft") / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert "is damaged: its sha256 is" in refused(copy / "reports" / "demo", "tuned", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "outputs"]


def alone(arguments: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that does not find this project's code."""
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **more}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=300
    )


@pytest.mark.slow
def test_stock_transformers_loads_and_speaks_without_this_project(published, tmp_path):
    done = alone([sys.executable, "-P", "-c", ALONE, *map(str, published.values())], tmp_path)
    for directory, line in zip(published.values(), done.stdout.splitlines()[-3:], strict=True):
        asked, said = json.loads(line)
        assert asked == PREFIX
        ids = torch.tensor([AutoTokenizer.from_pretrained(directory)(asked, add_special_tokens=False).input_ids])
        ours = load(directory).generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, repetition_penalty=1.1)
        assert ours[0].tolist() == said


@contextlib.contextmanager
def serving(directory: Path, folder: Path):
    """`transformers serve` over a model; gives its address when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", str(directory)]
    log = (folder / "serve.log").open("w+")
    process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], cwd=folder, stdout=log, stderr=log)
    address = f"http://localhost:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "serve.log").read_text()[-2000:]
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{address}/health", timeout=5)
                break
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("fastapi") and find_spec("openai")), reason="needs transformers[serving]")
def test_transformers_chat_speaks_with_it(published, tmp_path):
    """The command line as a person uses it: a turn, an answer that is cut at its length, and the end."""
    tuned = published["tuned"]
    with serving(tuned, tmp_path) as address:
        flags = ["do_sample=False", "max_new_tokens=16"]
        command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "chat", str(tuned), address, *flags]
        online = {**os.environ, "HF_HUB_OFFLINE": "0"}  # to reach the server on this machine
        shown = {"input": "Why?\nn\n!exit\n", "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, cwd=tmp_path, env=online, **shown)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "16 tokens in" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_ctranslate2_converts_it_and_writes_the_same_tokens(published, tmp_path, name):
    pytest.importorskip("ctranslate2", reason="needs ctranslate2")
    assert by_ctranslate2(published[name], tmp_path, PROMPT) == greedy(published[name])


def by_ctranslate2(directory: Path, folder: Path, prompt: str) -> list[int]:
    import ctranslate2

    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(folder / "converted"))
    generator = ctranslate2.Generator(str(folder / "converted"), device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt, add_special_tokens=False).input_ids)
    settings = {"max_length": NUM_TOKENS, "include_prompt_in_result": False, "end_token": [], "sampling_topk": 1}
    return list(generator.generate_batch([tokens], **settings)[0].sequences_ids[0])


def by_llama_cpp(directory: Path, folder: Path, prompt: str) -> list[int]:
    from llama_cpp import Llama

    script, file = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py", folder / "model.gguf"
    command = [sys.executable, str(script), str(directory), "--outfile", str(file), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    llama = Llama(str(file), n_ctx=256, n_threads=2, verbose=False)
    tokens = llama.tokenize(prompt.encode(), add_bos=False)
    assert tokens == AutoTokenizer.from_pretrained(directory)(prompt, add_special_tokens=False).input_ids
    return list(itertools.islice(llama.generate(tokens, temp=0.0, repeat_penalty=1.0), NUM_TOKENS))


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """The demo's model with 36 blocks, its new ones as if they had been trained."""
    folder = tmp_path_factory.mktemp("grown")
    cache = os.environ.get("LLAMA_PRO_CACHE") or folder / "cache"
    arguments = ["stage=expand", "launch=inprocess", f"paths.outputs={folder / 'outputs'}", f"paths.cache={cache}"]
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, check=True, capture_output=True)
    source = artifact_of(folder / "outputs", "expand") / "model"
    stored, noise = read_index(source), torch.Generator().manual_seed(0)
    writers = [
        name for name in read_expansion(source).new_parameters if name.endswith(("o_proj.weight", "down_proj.weight"))
    ]
    changed = {name: torch.randn(stored[name].shape, generator=noise) * 0.02 for name in writers}
    save_trained(source, folder / "model", changed)
    return folder / "model"


@pytest.mark.slow
@pytest.mark.network
def test_ctranslate2_writes_what_the_grown_demo_model_does(grown, tmp_path):
    pytest.importorskip("ctranslate2", reason="needs ctranslate2")
    assert by_ctranslate2(grown, tmp_path, PROMPT) == greedy(grown)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="needs LLAMA_CPP, the folder of its source")
def test_llama_cpp_converts_the_grown_demo_model_and_writes_the_same_tokens(grown, tmp_path):
    for package in ("llama_cpp", "sentencepiece"):  # the script imports the latter for every Llama
        pytest.importorskip(package, reason="needs llama-cpp-python and sentencepiece")
    assert by_llama_cpp(grown, tmp_path, PROMPT) == greedy(grown)
