"""The look before a run: it tells, warns, or refuses by the share of images that show their object."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from odis_mm import apis
from odis_mm.config import load_config
from odis_mm.engine.hooks.views import ViewInspectionHook, samples_of, similarity
from odis_mm.utils.errors import ConfigError
from odis_mm.visualization import draw_views


def config(folder, side, min_cover=None, recipe='odis_small'):
    """A recipe for small data on 8 images of 128 x 128 pixels with one square object of ``side``."""
    for i in range(8):
        Image.new('RGB', (128, 128), (i, i, i)).save(folder / f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', width=128, height=128) for i in range(8)]
    boxes = [dict(id=i, image_id=i, category_id=1, bbox=[60, 60, side, side]) for i in range(8)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (folder / 'boxes.json').write_text(json.dumps(content))
    cfg = load_config(recipe)
    cfg.train_dataloader.dataset.update(data_root=str(folder), ann_file='boxes.json', data_prefix='')
    if min_cover is not None:
        next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'SampleViews').min_cover = min_cover
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_cfg.update(max_iters=2)
    cfg.param_scheduler = []
    cfg.model.backbone.arch.update(embed_dims=32, num_layers=2, feedforward_channels=64)
    cfg.model.neck.in_channels = 32
    if 'in_channels' in cfg.model.head:
        cfg.model.head.in_channels = 32
    cfg.default_hooks.logger.interval = 1
    return cfg


def test_a_run_that_would_learn_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='no image shows its object in all global views.*min_cover'):
        apis.train(config(tmp_path, 4, (0.5, 0.5)), work_dir=str(tmp_path / 'run'))
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.parametrize(
    'recipe, figures',
    [
        ('odis_small', 'similarity and effective_rank'),
        ('alfm_small', 'similarity and effective_rank'),
        ('gtsa_small', 'rotation_accuracy (25 %: chance) and teacher_spread'),
        ('ibot_small', 'similarity and effective_rank'),
        ('odis_demo', None),
        ('dino_demo', None),
    ],
)
def test_a_loss_that_may_be_below_0_is_explained(recipe, figures):
    hint = MODELS.build(load_config(recipe).model).loss_hint
    assert (f'judge by {figures}' in hint and 'below 0' in hint) if figures else not hint


@pytest.mark.parametrize('side, cover, level', [(14, (0.08, 0.08), 'WARNING - only'), (60, 0.04, 'INFO - ')])
def test_the_share_is_told(tmp_path, side, cover, level):
    cfg = config(tmp_path, side, cover)
    cfg.default_hooks.views.pictures = 1
    runner = apis.train(cfg, work_dir=str(tmp_path / 'run'))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    line = next(line for line in log.splitlines() if 'show their object in all global views' in line)
    assert level in line, line
    patches = int(re.search(r'all global views, on (\d+) of 36 patches in the median; the others', line)[1])
    assert 1 <= patches <= (8 if side == 14 else 36) and (side == 14 or patches > 8)
    assert 'loss: lower is better, below 0 too' in log.split('Epoch(train)')[0]
    share = int(line.split('% of the images')[0].split()[-1])
    assert (0 < share < 50) == ('WARNING' in level)
    assert 'train/visible_share' in runner.message_hub.log_scalars
    shown = {path.name for path in (tmp_path / 'run').glob('*/vis_data/vis_image/*')}  # what TensorBoard, W&B are given
    for name in ('views_1', 'curves', 'attention'):
        assert (tmp_path / 'run' / f'{name}.png').is_file()
        assert any(found.startswith(f'{name}_') for found in shown), shown


@pytest.mark.parametrize('side, size, told', [(12, 48, True), (12, 192, False), (60, 48, False)])
def test_few_visible_patches_are_told_with_a_remedy(side, size, told, tmp_path):
    cfg = config(tmp_path, side, min_cover=0.0)
    step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'SampleViews')
    step.views[0].size = size
    said = []
    loader = SimpleNamespace(dataset=DATASETS.build(cfg.train_dataloader.dataset))
    logger = SimpleNamespace(info=said.append, warning=said.append)
    runner = SimpleNamespace(logger=logger, train_dataloader=loader, model=torch.nn.Identity())
    ViewInspectionHook(pictures=0).before_train(runner)
    lines = [line for line in said if 'at most 2 of' in line]
    assert len(lines) == told, said
    assert not told or ('at most 2 of the 36 patches of a global view; larger views have more' in lines[0])
    assert not told or '--size of odis-mm pretrain, or size of the views, here 48 pixels' in lines[0]


RECIPES = ('odis_small', 'ibot_small', 'gtsa_small', 'alfm_small')


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_run_ends_in_a_picture_of_what_its_losses_read(recipe, tmp_path):
    """The [OBJ] token of GTSA and ALFM is not trained: where it looks means nothing."""
    cfg = config(tmp_path, 60, recipe=recipe)
    hook, model = ViewInspectionHook(), MODELS.build(cfg.model)
    hook.samples = list(samples_of(DATASETS.build(cfg.train_dataloader.dataset), 2))
    shown = []
    runner = SimpleNamespace(
        model=model,
        work_dir=str(tmp_path / 'run'),
        iter=1,
        visualizer=SimpleNamespace(add_image=lambda name, image, step: shown.append(name)),
    )
    (tmp_path / 'run').mkdir()
    hook.after_train(runner)
    wanted = 'similarity' if recipe in ('gtsa_small', 'alfm_small') else 'attention'
    assert [path.name for path in (tmp_path / 'run').iterdir()] == [f'{wanted}.png'] and shown == [wanted]


def test_similarity_is_that_to_the_patch_in_the_middle():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, :2] = 1.0  # above, and below something else; a constant is no difference
    maps[0, 1, 2:] = 3.0
    values = similarity(maps + torch.tensor([100.0, -50.0])[:, None, None], (2, 2))
    torch.testing.assert_close(values[0, :2], torch.full((2, 4), -1.0))
    torch.testing.assert_close(values[0, 2:], torch.ones(2, 4))


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_legend_names_what_is_drawn_and_nothing_else(recipe, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        Figure, 'legend', lambda self, handles, **kwargs: labels.append([h.get_label() for h in handles])
    )
    monkeypatch.setattr(Figure, 'savefig', lambda self, file: self.canvas.get_renderer())
    dataset = DATASETS.build(config(tmp_path, 60, recipe=recipe).train_dataloader.dataset)
    for sample in samples_of(dataset, 8):
        draw_views(sample, str(tmp_path / 'views.png'))
        named = set(labels.pop())
        assert ('crop of a local view' in named) == ('local' in sample['view_roles']) == (recipe == 'gtsa_small')
        assert ('box of the target' in named) == (recipe == 'odis_small')
        assert ('patches masked for the student' in named) == any(m.any() for m in sample.get('mim_masks', ()))
        dark = [not mask.all() for mask in sample.get('patch_masks', ())]
        assert ('dark, outside of the dots: patches that [OBJ] does not see' in named) == any(dark)
        assert ('boxes of other objects' in named) == (sample.get('target', -1) >= 0 and len(sample['bboxes']) > 1)
        assert not any(dark) or recipe == 'odis_small'
        assert 'outline of the target' not in named, 'there are boxes only'
