"""The ways of post-pretraining that tests/bench/train.py compares, each run in a process of its own.

Every way gets the same documents (tokens of one data artifact, in order) and takes steps of the same number of tokens
with the same learning rate. It prints one JSON line a step, with the time at its end and its useful tokens (padding is
not useful) and the processor time until then, and one at the end with the peak of memory.

What the authors' way reproduces of their code (open_instruct/finetune.py and customized_trainer.py): a document is a
row, cut at the row's length, padded to the longest of its batch; all parameters are frozen but those of the new blocks,
which are given to AdamW in two groups; activation checkpointing of every block, and `enable_input_require_grads` with
it, so that the backward pass runs down to the embeddings. What it leaves out: DeepSpeed (there is none on a CPU). A
few timed batches cannot hold as much padding as all do, so full rows are timed and the share of padding is that of all
documents in batches of that size.

The default way is transformers' Trainer as its language-model example sets it up: documents joined and cut into full
rows, attention across documents, the new blocks alone unfrozen, all other settings at their defaults.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

BETAS, LR = (0.9, 0.95), 2e-4


def report(**fields: Any) -> None:
    """One line for the process that compares."""
    print(json.dumps({"at": time.perf_counter(), "cpu": time.process_time(), **fields}), flush=True)


def peak_bytes() -> int:
    """Peak of the GPU's allocator where there is one, of this process's resident set otherwise."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Data


def documents(directory: Path) -> Iterator[np.ndarray]:
    """The tokens of each document of a data artifact, source by source."""
    for file in sorted(directory.glob("*.tokens.npy")):
        tokens = np.load(file, mmap_mode="r")
        offsets = np.load(file.with_name(file.name.replace(".tokens.", ".offsets.")))
        for start, stop in pairwise(offsets):
            yield np.asarray(tokens[start:stop], dtype=np.int64)


def joined_rows(directory: Path, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
    """Full rows of joined documents."""
    rest = np.empty(0, dtype=np.int64)
    for tokens in documents(directory):
        rest = np.concatenate([rest, tokens])
        while len(rest) >= seq_len:
            yield {"input_ids": rest[:seq_len], "labels": rest[:seq_len]}
            rest = rest[seq_len:]


def document_rows(directory: Path, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
    """A row a document, cut at seq_len; those that fill it."""
    for tokens in documents(directory):
        if len(tokens) >= seq_len:
            yield {"input_ids": tokens[:seq_len], "labels": tokens[:seq_len]}


def useful_share(directory: Path, seq_len: int, rows: int) -> float:
    """Of the tokens of all documents' batches, cut at seq_len and padded to the longest of a batch: no padding."""
    lengths = np.array([min(len(tokens), seq_len) for tokens in documents(directory)])
    batches = np.random.default_rng(0).permutation(lengths)[: len(lengths) // rows * rows].reshape(-1, rows)
    return float(batches.sum() / (batches.max(1) * rows).sum())


def padded(rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """A batch as transformers' data collators pad it: to its longest row, with a mask."""
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    batch = {}
    for key, value in fill.items():
        full = np.full((len(rows), length), value)
        for index, row in enumerate(rows):
            full[index, : len(row["input_ids"])] = row.get(key, 1)
        batch[key] = torch.from_numpy(full)
    return batch


def new_block_names(model: Path) -> list[str]:
    """Prefixes of the parameters that the expansion created."""
    from pipeline.records.expansion import read_expansion

    return list(read_expansion(model).module_parameters)


# The ways


def run_ours(arguments: argparse.Namespace) -> None:
    """A post-pretraining stage as the pipeline runs it; --launch changes its launch settings."""
    import yaml

    from pipeline.data.packing.mixture import PackedStream
    from pipeline.data.tokens.store import TokenStore
    from pipeline.training.device import launch_options
    from pipeline.training.fit import fit
    from pipeline.training.methods.strategy import NewBlocks
    from pipeline.training.settings import Settings

    conf = Path(__file__).resolve().parents[2] / "conf"
    launch = yaml.safe_load((conf / "launch" / "local.yaml").read_text())
    launch |= {"micro_batch": arguments.micro, "checkpoint_every_s": 1e9, **json.loads(arguments.launch)}
    settings: dict[str, Any] = {}
    for name in ("training/base", "training/embedded", "pretrain/embedded"):
        settings |= yaml.safe_load((conf / f"{name}.yaml").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("defaults", "skip")}
    settings |= {
        "seq_len": arguments.seq_len, "batch_size": arguments.rows, "num_steps": arguments.steps, "num_tokens": None,
        "precision": arguments.precision, "lr": LR, "validate_every": 10**9,
    }  # fmt: skip
    tokens = list(documents(arguments.data))
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in tokens])])
    store = TokenStore("bench", np.concatenate(tokens).astype(np.uint16), offsets, None)
    stream = PackedStream([store], {"bench": 1.0}, arguments.seq_len, 0, packing="fill")
    useful = arguments.rows * arguments.seq_len  # rows of text are full

    def progress(**fields: Any) -> None:
        if "loss" in fields:
            report(tokens=useful, loss=fields["loss"])

    with tempfile.TemporaryDirectory() as place:
        runtime, device = launch_options(launch, Path(place), progress, lambda: False)
        with profiled(arguments.profile, arguments.steps):
            result = fit(
                arguments.model, Path(place) / "model", NewBlocks(), Settings.of(settings), stream, {}, runtime, device
            )
        told = ("attention", "compiled", "flops_per_token", "flops_per_token_6nd", "peak_flops_per_s", "peak_source")
        report(peak_bytes=result["peak_memory_bytes"], **{name: result[name] for name in told if name in result})


def run_trainer(arguments: argparse.Namespace) -> None:
    """transformers' Trainer, by default or as the authors use it."""
    import torch
    import transformers

    authors = arguments.run == "authors"
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(str(arguments.model), dtype=dtype)
    wanted = set(new_block_names(arguments.model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    source = (document_rows if authors else joined_rows)(arguments.data, arguments.seq_len)
    per_step = arguments.rows
    rows = [row for _, row in zip(range(per_step * arguments.steps), source, strict=False)]
    settings: dict[str, Any] = {}
    if authors:
        model.enable_input_require_grads()
        settings = {"gradient_checkpointing": True, "adam_beta2": BETAS[1], "weight_decay": 0.1}
    with tempfile.TemporaryDirectory() as place:
        options = transformers.TrainingArguments(
            place, per_device_train_batch_size=arguments.micro, max_steps=arguments.steps, learning_rate=LR,
            gradient_accumulation_steps=per_step // arguments.micro, save_strategy="no", report_to=[],
            logging_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
            use_cpu=not torch.cuda.is_available(), **settings,
        )  # fmt: skip
        share = useful_share(arguments.data, arguments.seq_len, arguments.micro) if authors else 1.0
        useful = [per_step * arguments.seq_len * share] * arguments.steps
        trainer = transformers.Trainer(
            model, options, data_collator=padded, train_dataset=rows, callbacks=[reporting_callback(useful)]
        )
        with profiled(arguments.profile, arguments.steps):
            trainer.train()
    report(peak_bytes=peak_bytes())


def run_llamafactory(arguments: argparse.Namespace) -> None:
    """LLaMA-Factory: stage pt, freeze, use_llama_pro, packing; in an environment that has it."""
    import torch
    import transformers
    from llamafactory.train.tuner import run_exp

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(arguments.model))
    wanted, texts = arguments.rows * arguments.seq_len * (arguments.steps + 1), []
    for tokens in documents(arguments.data):
        texts.append({"text": tokenizer.decode(tokens, skip_special_tokens=True)})
        wanted -= len(tokens)
        if wanted < 0:
            break
    bf16 = arguments.precision == "bf16"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "bench.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        info = {"bench": {"file_name": "bench.jsonl", "columns": {"prompt": "text"}}}
        (Path(place) / "dataset_info.json").write_text(json.dumps(info))
        useful = [arguments.rows * arguments.seq_len] * arguments.steps
        settings = {
            "model_name_or_path": str(arguments.model), "stage": "pt", "do_train": True, "finetuning_type": "freeze",
            "freeze_trainable_layers": arguments.new_blocks, "freeze_trainable_modules": "all", "use_llama_pro": True,
            "dataset": "bench", "dataset_dir": place, "cutoff_len": arguments.seq_len, "packing": True,
            "output_dir": f"{place}/out", "per_device_train_batch_size": arguments.micro, "report_to": "none",
            "gradient_accumulation_steps": arguments.rows // arguments.micro, "max_steps": arguments.steps,
            "learning_rate": LR, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "bf16": bf16,
            "use_cpu": not torch.cuda.is_available(),
        }  # fmt: skip
        run_exp(settings, callbacks=[reporting_callback(useful)])
    report(peak_bytes=peak_bytes())


def reporting_callback(useful: list[float]) -> Any:
    """A callback of transformers' Trainer that reports each step's useful tokens when it ends."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(begun=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(tokens=useful[state.global_step - 1])

    return Reporting()


# Rates and profiles


DISTINCT_BLOCKS = 4  # whose weights a cache does not hold, like a model's
HEAD_TOKENS = 512  # whose logits a run holds at once: loss_chunk


def run_rates(arguments: argparse.Namespace) -> None:
    """TFLOP/s of the matrix products of a step, by pass: forward, gradient by the input, gradient by the weight.

    Measured as a run does them at best: every product of a block and the head at its own shape, separate weights for
    each block, preallocated outputs, and two warm-up passes.
    """
    import torch
    import transformers

    from pipeline.training.kernels.fp32_matmul import choose_fp32_matmul, fp32_matmul

    config = transformers.AutoConfig.from_pretrained(str(arguments.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    tokens, head = arguments.micro * arguments.seq_len, [(config.vocab_size, config.hidden_size)]
    blocks = Products(matrices(config) * DISTINCT_BLOCKS, tokens, device, dtype)
    head_alone = Products(head, min(tokens, HEAD_TOKENS), device, dtype)
    with fp32_matmul(choose_fp32_matmul("auto", torch.device(device), arguments.precision, "auto")):
        rates = {name: blocks.rate(name) for name in ("forward", "by_input", "by_weight")}
        rates |= {f"head_{name}": head_alone.rate(name) for name in ("forward", "by_input")}
    report(rates=rates, threads=torch.get_num_threads(), torch=torch.__version__)


def matrices(config: Any) -> list[tuple[int, int]]:
    """Outputs and inputs of the seven matrices of a block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    attention = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    return [*attention, (inner, hidden), (inner, hidden), (hidden, inner)]


class Products:
    """Times the forward and backward products of these matrices with `tokens` rows of activations."""

    def __init__(self, shapes: Sequence[tuple[int, int]], tokens: int, device: str, dtype: Any) -> None:
        import torch

        self._mm, options = torch.mm, {"device": device, "dtype": dtype}
        self._flops = sum(2.0 * tokens * rows * columns for rows, columns in shapes)
        self._weights = [torch.randn(shape, **options) for shape in shapes]
        self._of_width = {width: torch.randn(tokens, width, **options) for width in {n for s in shapes for n in s}}
        self._results = {width: torch.empty(tokens, width, **options) for width in self._of_width}
        self._gradients = [torch.empty(shape, **options) for shape in shapes]

    def rate(self, name: str) -> float:
        """TFLOP/s of one pass over all matrices, the median of eight."""
        return self._flops / median_seconds(getattr(self, f"_{name}")) / 1e12

    def _forward(self) -> None:
        for weight in self._weights:
            rows, columns = weight.shape
            self._mm(self._of_width[columns], weight.T, out=self._results[rows])

    def _by_input(self) -> None:
        for weight in self._weights:
            rows, columns = weight.shape
            self._mm(self._of_width[rows], weight, out=self._results[columns])

    def _by_weight(self) -> None:
        for gradient in self._gradients:
            rows, columns = gradient.shape
            self._mm(self._of_width[rows].T, self._of_width[columns], out=gradient)


def median_seconds(work: Callable[[], Any], repeats: int = 8) -> float:
    """The median of several runs after two first ones, in seconds."""
    import torch

    times = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return float(np.median(times[2:]))


CLASSES = {
    "attention": ("attention", "_softmax", "bmm", "baddbmm", "flash", "fmha"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear", "gemm", "cutlass", "nvjet"),
    "optimizer and clipping": ("adam", "aten::_foreach", "aten::linalg_vector_norm"),
    "loss": ("logsumexp", "_log_softmax", "nll_loss", "ChunkedCrossEntropy", "aten::exp_", "aten::sub_"),
}


class profiled:  # noqa: N801
    """Prints, after what it surrounds, the share of each class of operators in the time on the device."""

    def __init__(self, wanted: bool, steps: int) -> None:
        from torch.profiler import profile

        self._profile = profile() if wanted else None

    def __enter__(self) -> None:
        if self._profile:
            self._profile.__enter__()

    def __exit__(self, *error: Any) -> None:
        if not self._profile:
            return
        self._profile.__exit__(*error)
        shares: dict[str, float] = {}
        for event in self._profile.key_averages():
            spent = getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total
            shares[operator_class(event.key)] = shares.get(operator_class(event.key), 0.0) + spent
        total = sum(shares.values())
        report(shares={name: spent / total for name, spent in sorted(shares.items(), key=lambda x: -x[1])})


def operator_class(name: str) -> str:
    """The class of `CLASSES` that an operator's name is of, else elementwise."""
    return next((c for c, marks in CLASSES.items() if any(m in name for m in marks)), "elementwise, norms and copies")


RUNS = {
    "ours": run_ours, "authors": run_trainer, "trainer": run_trainer, "llamafactory": run_llamafactory,
    "rates": run_rates,
}  # fmt: skip


def main() -> None:
    """Run one way; started by train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    for name in ("model", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("seq-len", "rows", "micro", "steps", "new-blocks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--launch", default="{}")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    RUNS[arguments.run](arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
