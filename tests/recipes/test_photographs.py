"""On real photographs the command's choice of views shows the objects; the demo recipe's does not, which is told."""

import pytest
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS

from odis_mm.config import load_config
from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.survey import visibility
from odis_mm.recipes import pretraining_config
from odis_mm.recipes.pretraining import ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize('name, by_demo', [('chess', 0.0), ('bccd', 0.35)])
def test_nine_of_ten_photographs_are_usable(shared_data, name, by_demo):
    root = shared_data / name
    if not root.is_dir():
        pytest.skip(f'no photographs at {root}')
    init_default_scope('mmpretrain')
    cfg, _ = pretraining_config(root)
    dataset = ObjectDataset(ann_file=str(root / 'annotations' / 'train.json'), data_prefix=str(root / 'images'))

    def share(config) -> float:
        step = next(step for step in config.train_dataloader.dataset.pipeline if step.type == 'SampleViews')
        return visibility(dataset, TRANSFORMS.build(dict(step))).share

    assert share(cfg) >= ENOUGH == 0.9
    assert share(load_config('odis_demo')) <= by_demo, 'refused at 0, warned of below one half'
