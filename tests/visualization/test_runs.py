"""Pictures of a run: what has a curve, and maps on a scale that can be read."""

from types import SimpleNamespace

import matplotlib.axes
import numpy as np
import pytest
import torch

from odis_mm.engine.hooks.health import Figures, HealthHook
from odis_mm.engine.hooks.views import attention_maps, relative
from odis_mm.visualization import draw_curves
from odis_mm.visualization.runs import AXES, LEVELS, TWICE, curves_of


def records(steps=(10, 20, 30), health=(10, 30)):
    train = [dict(lr=1e-3, loss=1.0, loss_obj=0.5, similarity=0.3, effective_rank=8.0, time=0.1, step=s) for s in steps]
    figures = {'health/feature_rank': 4.0, 'health/similarity': 0.3, 'regions/box_pool': 50.0}
    return sorted(train + [{**figures, 'step': step} for step in health], key=lambda record: record['step'])


def test_what_a_run_is_judged_by_has_a_curve():
    assert list(curves_of(records())) == ['loss', 'loss_obj', 'similarity', 'effective_rank', 'lr']
    # three measurements make a curve; what is there already is not drawn twice, nor what has a picture of its own
    assert list(curves_of(records(health=(10, 20, 30))))[-1] == 'health/feature_rank'
    assert not {'health/similarity', 'regions/box_pool'} & curves_of(records(health=(10, 20, 30))).keys()


def test_steps_that_were_done_again_count_once():
    again = [*records(health=()), dict(loss=7.0, step=20), dict(loss=8.0, step=40)]  # killed after 30, resumed at 10
    assert curves_of(again)['loss'] == {10: 1.0, 20: 7.0, 30: 1.0, 40: 8.0}


def test_units_good_ranges_and_reference_lines(tmp_path, monkeypatch):
    drawn, real = [], matplotlib.axes.Axes.axhline
    monkeypatch.setattr(
        matplotlib.axes.Axes, 'axhline', lambda ax, y, **how: drawn.append((ax, y)) or real(ax, y, **how)
    )
    good = HealthHook(limits=dict(similarity=0.299)).good_ranges()
    image = draw_curves(records(health=(10, 20, 30)), str(tmp_path / 'c.png'), 'a $^$ caf\udce9 run', good)
    assert image.ndim == 3 and (tmp_path / 'c.png').stat().st_size
    panels = {ax.get_title(): ax for ax in drawn[0][0].figure.axes}
    assert panels['health/feature_rank (good > 1.5)'].get_ylabel() == "directions of the teacher's features"
    assert panels['effective_rank'].get_ylabel() == 'directions of the embeddings'
    lines = {(ax.get_title(), y) for ax, y in drawn}
    assert lines == {('effective_rank', 1), ('similarity (good > 0.299)', 0.299)}  # 1.5 is too far from 4 to be seen
    assert {ax.get_xlim() for title, ax in panels.items() if title} == {(0, 30)}


def test_names_are_those_that_are_logged():
    """A renamed figure would lose its unit."""
    logged = HealthHook().good_ranges().keys() | {
        f'health/{label.replace(" ", "_")}' for label in ('KL', 'EMA distance', 'empty masks')
    }
    assert {name for name in {*AXES, *LEVELS, *TWICE} if name.startswith('health/')} <= logged
    assert len(logged) == 1 + len(Figures.__dataclass_fields__)  # similarity is there twice


@pytest.mark.parametrize('kept', [(0, 1, 2), (1,)])
def test_attention_is_relative_to_the_patches_that_may_be_seen(kept):
    masks = np.zeros((2, 4, 4), bool)
    masks[0].flat[list(kept)] = True  # the second image does not show its object
    alike = masks / 2 / len(kept)  # half of the attention goes to other tokens
    values = relative(alike.astype(np.float32), masks)
    np.testing.assert_allclose(values[masks], 1.0)
    assert np.isnan(values[~masks]).all()


def test_the_scale_of_attention_holds_its_values():
    """On 4 x uniform over the view, each patch of a small object was white."""
    masks = np.zeros((1, 14, 14), bool)
    masks[0, :3, :4] = True
    attention = masks / 12 * np.linspace(0, 2, 14, dtype=np.float32)
    teacher = SimpleNamespace(object_attention_map=lambda inputs, patches: torch.from_numpy(attention))
    model = SimpleNamespace(masked_attention=True, branch=lambda name: teacher, data_preprocessor=lambda batch: batch)
    sample = dict(pixels=[np.zeros((224, 224, 3), np.uint8)], patch_masks=masks)
    maps = attention_maps(model, [sample])
    seen = maps['values'][masks]
    assert maps['limits'] == (0.0, 2.0) and seen.max() <= 2 and seen.mean() == pytest.approx(1)
    attention[0, 0, 0] = 2.0  # one peak
    maps = attention_maps(model, [sample])
    assert maps['limits'][1] >= 0.9 * maps['values'][masks].max() > 5
