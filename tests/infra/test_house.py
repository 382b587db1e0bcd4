"""The house itself: one package, rooms that import downwards, a core that needs no server, a lint that sees it."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"dataworth": "flows", "dataworth.tasks": "tasks", "dataworth.storage": "storage"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# From a module, what it must not import: one import for each cycle between rooms that once was.
BACK = {
    "tasks/coalitions/parts.py": "dataworth.tasks.counterfactual.config",
    "tasks/coalitions/games/model_game.py": "dataworth.tasks.attribution.rows",
    "tasks/curvature/steps.py": "dataworth.tasks.coalitions.config",
    "tasks/scoring/ready.py": "dataworth.tasks.coalitions.config",
    "tasks/training/retraining.py": "dataworth.tasks.coalitions.games.model_game",
    "tasks/model/loading.py": "dataworth.tasks.corpus.config",
    "storage/place.py": "dataworth.storage.s3.objects",
}


def packages() -> set[str]:
    """Those that there are, as they are installed."""
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((package, *init.parent.relative_to(ROOT / folder).parts)))
    return found


def copied(folder: Path) -> Path:
    """The package in a folder of its own, as it is installed, and the project's settings beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for package, name in FOLDERS.items():
        shutil.copytree(ROOT / name, folder / package.replace(".", "/"), ignore=ignored, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def linted(folder: Path) -> "subprocess.CompletedProcess[str]":
    lint = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [lint, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def python(program: str, *words: object, folder: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_installed():
    assert sorted(packages()) == sorted(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.slow
def test_the_lint_sees_every_import_upwards(tmp_path):
    folder = copied(tmp_path)
    assert linted(folder).returncode == 0
    for module, imported in BACK.items():
        path = folder / "dataworth" / module
        before = path.read_text()
        path.write_text(f"{before}\n\ndef back():\n    import {imported}\n")
        done = linted(folder)
        assert done.returncode == 1, module
        assert "BROKEN" in done.stdout
        path.write_text(before)


def test_a_bare_import_is_a_lint_error():
    ruff = Path(sys.executable).with_name("ruff")
    for line in ("from tasks.model import loading", "import storage", "from flows.config import ValueConfig"):
        words = [ruff, "check", "--select", "TID251", "--stdin-filename", "tests/x.py", "-"]
        done = subprocess.run(words, input=f"{line}\n", cwd=ROOT, capture_output=True, text=True, check=False)
        assert "TID251" in done.stdout, line


def test_the_package_is_imported_at_once():
    program = (
        "import dataworth, sys, time; print(time.process_time(), *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds, *loaded = python(program).split()
    assert float(seconds) < 1  # of its own: other processes may be busy
    assert not {"numpy", "torch", "prefect", "pandas"} & set(loaded)


WITHOUT = """
import importlib, pkgutil, sys
import dataworth.tasks, dataworth.storage
apart = ("dataworth.tasks.wrapping", "dataworth.tasks.report.mlflow", "dataworth.tasks.model.tokenizer_trial")
apart += ("dataworth.tasks.corpus.unpacking",)  # programs of their own
for package in (dataworth.storage, dataworth.tasks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(apart) and not module.name.endswith(".task"):
            importlib.import_module(module.name)
print(*sorted({"prefect", "dask", "distributed", "mlflow"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_numerics_and_steps_load_neither_prefect_nor_dask_nor_mlflow():
    assert python(WITHOUT).split() == []


@pytest.mark.slow
def test_an_installed_wheel_is_one_package_beside_folders_of_the_same_names(tmp_path, checkpoints, corpus_file):
    source, place, own = tmp_path / "source", tmp_path / "site", tmp_path / "own"
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    install = [*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(place), str(source)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    assert {path.name for path in place.iterdir() if not path.name.endswith(".dist-info")} == {"bin", "dataworth"}
    (own / "flows").mkdir(parents=True)
    (own / "storage").mkdir()
    for name in ("flows/__init__.py", "tasks.py", "storage/__init__.py"):
        (own / name).write_text("raise ImportError('somebody else\\'s')\n")
    here = {"PYTHONPATH": f"{own}:{place}"}
    said = python("import dataworth; print(dataworth.__file__)", folder=own, **here)
    assert said.strip() == str(place / "dataworth" / "__init__.py")
    python(
        "from dataworth.command.cli import main; import sys; sys.argv[1:] = ['doctor', '--help']; main()",
        folder=own,
        **here,
    )
    python("import dataworth.deployed", folder=own, **here)  # what a worker imports
    program = (
        "import dataworth as dw, sys, json;"
        "rows = dw.index(sys.argv[1], None, sys.argv[2], corpus={'max_length': 32}, projection={'rank': 2});"
        "print(json.dumps([len(rows), rows['d0'].shape[1]]))"
    )
    found = json.loads(python(program, checkpoints["llama"], corpus_file, folder=own, **here))
    assert found[0] == 12
    assert found[1] > 0
