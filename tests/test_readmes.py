"""The texts say what the results say: their tables are what `benchmark/tables.py` makes of the results."""

import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import tyro

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import tables  # noqa: E402

TEXTS = {name: (ROOT / name).read_text() for name in (*tables.READMES, "tests/README.md")}


@pytest.mark.parametrize("name", tables.READMES)
def test_tables_are_those_of_the_results(name):
    assert tables.filled(TEXTS[name]) == TEXTS[name], "run benchmark/tables.py"


def test_every_table_stands_somewhere():
    shown = [table for text in TEXTS.values() for table in re.findall(r"<!-- (\w+) -->\n", text)]
    assert sorted(set(shown) - {"end"}) == sorted(tables.TABLES)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    links = re.findall(r'\]\((?!http)([^)#]+)\)|src="([^"]+)"', TEXTS[name])
    assert links
    for link in (a or b for a, b in links):
        assert ((ROOT / name).parent / link).exists(), link


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_tests_that_are_named_exist(name):
    for file in re.findall(r"`(?:benchmark/results/)?(\w+\.csv)`", TEXTS[name]):
        assert (ROOT / "benchmark/results" / file).exists() or file == "my_games.csv", file
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/test_*.py"))
    for test in re.findall(r"`(test_\w+)`", TEXTS[name]):
        assert f"def {test}(" in tests, test


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_understood(name):
    """Every command line that calls a script parses."""
    commands = re.findall(
        r"^ +(?:pip .*&& )?python (?:\w+/)?(\w+)\.py(.*)$|`python \w+/(\w+)\.py(.*?)(?: &&.*)?`", TEXTS[name], re.M
    )
    assert commands or name == "tests/README.md"
    for script, flags, inline, inline_flags in commands:
        module, flags = importlib.import_module(script or inline), re.split(r"\(|&&", flags + inline_flags)[0].split()
        placeholder = {"runs/RUN/model.pt", "runs/benchmark/quick", "slurm", "entry.py:Entry"} & {*flags}
        if not placeholder and hasattr(module, "Args"):
            tyro.cli(module.Args, args=flags)


def test_the_readme_is_short():
    assert TEXTS["README.md"].count("\n") <= 220


def test_claims_of_an_optimum_name_its_class():
    """The README shows what the first command prints, with the class, and the old claims without one are gone."""
    readme = TEXTS["README.md"]
    assert "can do no better" not in readme and "exact optimum -0.90" not in readme
    assert re.search(r"optimum +-0\.90 for deterministic memory-1 leaders and stationary followers", readme)


def test_every_result_file_is_used():
    """No CSV lies in benchmark/results that no figure, table or text is made from."""
    used = " ".join(path.read_text() for path in (*ROOT.glob("benchmark/*.py"), *ROOT.glob("tests/*.py")))
    for path in ROOT.glob("benchmark/results/*.csv"):
        figure = re.sub(r"^vectorized_|(_runs|_summary)$", "", path.stem)
        assert figure in used, path.name
    assert pd.read_csv(ROOT / "benchmark/results/fig1_runs.csv")["script"].nunique() == 6
