"""The example program and the notebook do what they say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import ROOT

EXAMPLES = ROOT / "examples"


def look_up(*arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / "reverse_dictionary.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_reverse_dictionary():
    lines = look_up()
    assert lines[0] == "5000 entries, 148 bytes each instead of 1536 (10.4 times smaller)"
    definitions = [line for line in lines[2:] if not line.startswith("  ")]
    assert len(definitions) == 10 and len(lines) == 2 + 10 + 30
    best = [lines[i + 1] for i, line in enumerate(lines) if line in definitions and line]
    hits = sum(definition in entry for definition, entry in zip(definitions, best))
    assert hits >= 9  # the entry that the definition was cut from comes first


def test_reverse_dictionary_with_words():
    lines = look_up("knife", "--limit", "1", "-k", "1", "--bits", "4")
    assert "knife" in lines[2] and "sheathe" in lines[3]
    assert look_up("qwertyuiop")[2:] == ["No definition holds all of these words."]


def test_notebook(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    notebook = json.loads((EXAMPLES / "01_quickstart.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(EXAMPLES)
    names: dict = {}
    for number, cell in enumerate(notebook["cells"]):
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(plt.get_fignums()) == 2
    plt.close("all")
    recall = {bits: names["results"]["tq", bits][1] for bits in (1, 2, 3, 4)}
    assert recall[1] < recall[2] < recall[3] < recall[4] and recall[4] > 0.94
    assert abs(names["slopes"]["tq"] - 1) < 0.01 and names["slopes"]["mse"] < 0.92
    assert names["mapped"].ntotal == 4999 and names["ids"][0, 0] == 0


def run_notebook(name: str) -> dict:
    """What the cells of a notebook leave behind, its plots closed."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names: dict = {}
    for number, cell in enumerate(json.loads((EXAMPLES / name).read_text("utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    plt.close("all")
    return names


def need_the_kv_library() -> None:
    try:
        pytest.importorskip("turboquant.kvcache").library()
    except OSError:
        pytest.skip("libturboquant_kv is not installed with the package")


def test_notebook_of_long_contexts():
    need_the_kv_library()
    names = run_notebook("02_long_context.ipynb")
    assert names["memory"][4][-1][2] > 3.7  # 32,768 tokens
    for row in zip(*(names["errors"][bits] for bits in (4, 3, 2))):
        assert row[0] < row[1] < row[2]
    assert names["window_errors"][-1] < names["window_errors"][0] / 2
    for row in names["outlier_errors"].values():
        assert row[1] < 0.75 * row[0]


def test_notebook_of_adaptive_bits():
    need_the_kv_library()
    names = run_notebook("03_adaptive.ipynb")
    uniform, measured = names["uniform"], names["measured"]
    assert measured[names["targets"].index(3)] < uniform[1]
    assert measured == sorted(measured, reverse=True)
