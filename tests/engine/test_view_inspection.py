"""The look before a run: it tells, warns, or refuses by the share of images that show their object."""

import json

import pytest
from PIL import Image

from odis_mm import apis
from odis_mm.config import load_config
from odis_mm.utils.errors import ConfigError


def config(folder, side, min_cover):
    """The demo recipe on 8 images of 128 x 128 pixels with one square object of ``side``."""
    for i in range(8):
        Image.new('RGB', (128, 128), (i, i, i)).save(folder / f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', width=128, height=128) for i in range(8)]
    boxes = [dict(id=i, image_id=i, category_id=1, bbox=[60, 60, side, side]) for i in range(8)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (folder / 'boxes.json').write_text(json.dumps(content))
    cfg = load_config('odis_small')
    cfg.train_dataloader.dataset.update(data_root=str(folder), ann_file='boxes.json', data_prefix='')
    next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'SampleViews').min_cover = min_cover
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_cfg.update(max_iters=2)
    cfg.param_scheduler = []
    cfg.model.backbone.arch.update(embed_dims=32, num_layers=2, feedforward_channels=64)
    cfg.model.neck.in_channels = 32
    cfg.default_hooks.logger.interval = 1
    return cfg


def test_a_run_that_would_learn_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='no image shows its object in all global views.*min_cover'):
        apis.train(config(tmp_path, 4, (0.5, 0.5)), work_dir=str(tmp_path / 'run'))
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.parametrize('side, cover, level', [(14, (0.08, 0.08), 'WARNING - only'), (60, 0.04, 'INFO - ')])
def test_the_share_is_told(tmp_path, side, cover, level):
    runner = apis.train(config(tmp_path, side, cover), work_dir=str(tmp_path / 'run'))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    line = next(line for line in log.splitlines() if 'show their object in all global views' in line)
    assert level in line, line
    share = int(line.split('% of the images')[0].split()[-1])
    assert (0 < share < 50) == ('WARNING' in level)
    assert 'train/visible_share' in runner.message_hub.log_scalars
    assert (tmp_path / 'run' / 'views_1.png').is_file() and (tmp_path / 'run' / 'attention.png').is_file()
