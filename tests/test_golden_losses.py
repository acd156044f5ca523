"""Losses of the demo recipes' first steps, captured: a change that was not meant to alter training must leave them as
they are.

``python tests/test_golden_losses.py`` captures them anew, after a change of a recipe's numbers that was meant.
"""

import json
import sys
from pathlib import Path

import pytest

from helpers import DEMO_RECIPES, FOUR_STEPS
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.datasets.demo import ensure_demo

GOLDEN = Path(__file__).parent / 'assets' / 'golden_losses.json'


def losses(name: str, root: str, folder: Path) -> list:
    """Four steps on sixteen images."""
    options = {**parse_options(FOUR_STEPS), 'train_dataloader.dataset.data_root': root}
    apis.train(name, work_dir=str(folder), options=options)
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    return [{key: row[key] for key in row if 'loss' in key} for row in rows if 'loss' in row]


@pytest.mark.parametrize('name', DEMO_RECIPES)
def test_losses_are_the_captured_ones(name, demo, tmp_path):
    captured = json.loads(GOLDEN.read_text())[name]
    found = losses(name, demo, tmp_path)
    assert len(found) == len(captured) == 4
    for mine, golden in zip(found, captured):
        assert mine == pytest.approx(golden, rel=1e-5, abs=1e-5)


if __name__ == '__main__':
    work = Path(sys.argv[1] if len(sys.argv) > 1 else 'work_dirs/golden')
    root = ensure_demo(work / 'set', num_train=16, num_val=2, size=64)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({name: losses(name, root, work / name) for name in DEMO_RECIPES}, indent=1) + '\n')
