"""Figures on the pages are those that were last measured, of the weights that ship."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "renew_figures.py"


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("renew_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_on_the_pages_are_those_of_the_results(figures):
    for path in figures.PAGES:
        page = path.read_text(encoding="utf-8")
        assert "<!-- figures: " in page
        assert figures.renewed(page) == page, f"{path.name}: run python {SCRIPT}"


@pytest.mark.parametrize("name", ["accuracy", "confidence"])
def test_accuracy_and_confidence_were_measured_with_the_shipped_weights(figures, name):
    measured = figures.results(name)["checkpoints"]
    assert measured == figures.shipped().checkpoints, f"run benchmarks/{name}.py with --json"


def test_a_figure_that_was_changed_by_hand_is_noticed(figures):
    page = (SCRIPT.parents[1] / "README.md").read_text(encoding="utf-8")
    dice = f"{figures.results('accuracy')['t2']['t2']['mean_dice']:.3f}"
    changed = page.replace(dice, "0.999")
    assert changed != page
    assert figures.renewed(changed) == page


def test_figures_of_unseen_scans_vanish_with_the_weights_that_they_are_of(figures, monkeypatch):
    entry = figures.shipped()

    def table(**measured):
        changed = replace(entry, card=replace(entry.card, measured=measured))
        monkeypatch.setattr(figures, "shipped", lambda: changed)
        return figures.accuracy()

    assert "| T2 | **no** | 0.930 | 20.0 mm |" in table(
        unseen_t2_dice=0.93, unseen_t2_hausdorff_mm=20.0
    )
    assert "**no**" not in table()
