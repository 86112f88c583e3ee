"""A run of model=tiny on a little of this project's own code, from start to report."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def small_run(directory: Path, *arguments: str) -> list[str]:
    """The words of its command line; text and outputs go to `directory`."""
    (directory / "text").mkdir()
    for index, file in enumerate(sorted((ROOT / "pipeline" / "data").rglob("*.py"))):
        (directory / "text" / f"{index}.txt").write_text(file.read_text()[:1500])
    return [
        *arguments, "model=tiny", "expand.num_groups=2",
        "data@pretrain.data=local_text", f"pretrain.data.sources.local.origin.source.path={directory / 'text'}",
        "pretrain.data.held_out.fraction=0.2", "pretrain.seq_len=64", "pretrain.num_tokens=1024",
        "pretrain.validation_tokens=256", "benchmark.drift.samples.num_free=4", "benchmark.drift.samples.num_tokens=16",
        "benchmark.drift.samples.prompts=[]", "benchmark.drift.max_tokens=512", "report.num_bootstrap=200",
        "launch=inprocess", "launch.cpu=true", "launch.threads=1", f"paths.outputs={directory / 'outputs'}",
    ]  # fmt: skip
