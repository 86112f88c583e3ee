"""Policy as tests: the walls between rooms, sizes and names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_driver_imports_no_torch():
    """Composing, building the graph and checking every stage's request: all without torch."""
    code = """
import sys, tempfile
sys.argv = ["pipeline", "dry_run=true", "paths.outputs=/nonexistent/outputs", "paths.cache=" + tempfile.mkdtemp()]
import pipeline.__main__ as driver
status = driver.run()
heavy = sorted({"torch", "transformers", "accelerate", "datasets", "peft", "lm_eval"} & set(sys.modules))
print("status", status, "heavy", heavy)
"""
    assert run(code).strip().splitlines()[-1] == "status 0 heavy []"


def test_what_a_config_names_is_imported_without_torch():
    """The module of each `_target_`: it is imported where a request is checked."""
    texts = "\n".join(file.read_text() for file in (ROOT / "conf").rglob("*.yaml"))
    modules = sorted({path for path, _ in re.findall(r"\b(pipeline(?:\.[a-z_]+)+)\.([A-Z]\w+)", texts)})
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    if heavy := sorted({{"torch", "transformers", "accelerate", "datasets", "peft", "lm_eval"}} & set(sys.modules)):
        print(name, heavy)
        break
"""
    assert len(modules) > 40 and run(code) == ""


def test_help_is_answered_without_composing():
    result = subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "experiment: " in result.stdout and "python -m pipeline -m" in result.stdout


def test_import_walls():
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_no_file_without_a_meaning_and_none_too_long():
    for file in SOURCES:
        assert file.stem not in ("utils", "helpers", "helper", "common", "misc"), file
        assert len(file.read_text().splitlines()) <= 300, file


def test_no_folder_holds_more_than_fourteen_files():
    rooms = Counter(file.parent for top in ("pipeline", "stages", "tests") for file in (ROOT / top).rglob("[!_]*.py"))
    assert rooms and {str(room): n for room, n in rooms.items() if n > 14} == {}


def dotted(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(file: Path, names: set[str]) -> set[str]:
    """The files among `names` that a file imports: at its top, inside functions, and for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name"
            each = {f"{node.module}.{one.name}" for one in node.names}
            found |= each & names or {node.module or ""}
    return found & names - {dotted(file)}


def test_no_files_import_each_other_in_a_circle():
    """Imports for types count too: a file that needs the types of a file that needs it stands on the wrong side."""
    names = {dotted(file) for file in SOURCES}
    graph = {dotted(file): imported(file, names) for file in SOURCES}
    assert "pipeline.lineage.entries" in graph["pipeline.lineage.build"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_rooms_are_those_of_the_readme():
    """Every folder with code has its line in the README's map, and every line its folder."""
    block = (ROOT / "README.md").read_text().partition("\nconf/ ")[2].partition("```")[0]
    told = {"stages", "pipeline"}
    for room, rest in re.findall(r"^  (\w+)/ (.*)$", block, re.M):
        told |= {f"pipeline/{room}", *(f"pipeline/{room}/{inner}" for inner in re.findall(r"([\w/]+)/", rest))}
    assert told == {str(file.parent.relative_to(ROOT)) for file in SOURCES}


def test_no_pickle_no_eval_no_remote_code():
    for file in SOURCES:
        text = file.read_text()
        assert "import pickle" not in text, file
        assert all("weights_only=True" in call for call in text.split("torch.load(")[1:]), file
        assert "trust_remote_code=True" not in text, file


def test_every_stage_says_what_it_is():
    code = """
import pkgutil, stages
from pipeline.engine.stage import find_stage
for module in pkgutil.iter_modules(stages.__path__):
    found = find_stage(module.name)
    assert found.STAGE.makes and callable(found.forecast), module.name
    assert all(hasattr(found, "facts") for kind in ("model", "data") if found.STAGE.makes == kind), module.name
print("ok")
"""
    assert run(code).strip() == "ok"


def test_the_engine_names_no_stage_model_strategy_or_template():
    """It finds a stage by one function, whatever it is called."""
    named = [path.stem for path in (ROOT / "stages").glob("[!_]*.py")]
    named += [path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml")]
    named += ["expanded", "post-pretrained", "tuned", "chat_template", "NewBlocks", "Lora"]
    words = {
        name for name in named if name not in ("data", "report", "base", "full", "samples")
    }  # plain English, or another thing
    for file in (ROOT / "pipeline" / "engine").rglob("*.py"):
        strings = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        code = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        exact = {one for one in strings if isinstance(one, str)} | code
        assert not exact & {*words, "data", "base", "stages.evaluate"}, file
        assert "import stages" not in file.read_text() and "from stages" not in file.read_text(), file
