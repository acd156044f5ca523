"""What a trial on own data leaves on the disk by default: checkpoints are kept by number, however long the run."""

import pytest
from mmpretrain.registry import MODELS

from odis_mm.datasets.layout import find_splits
from odis_mm.models.selfsup.base import TeacherStudent
from odis_mm.recipes import METHODS, pretraining_config
from odis_mm.recipes.detector import detector_config

GB = 10**9


@pytest.mark.parametrize('steps', [20, 600, 20000])
@pytest.mark.parametrize('method', METHODS)
def test_a_trial_of_any_length_stays_below_a_gigabyte(coco_folder, method, steps):
    cfg, _ = pretraining_config(coco_folder, method=method, steps=steps)
    hook = cfg.default_hooks.checkpoint
    assert 0 < hook.max_keep_ckpts <= 2 and hook.interval >= steps // (10 // cfg.train_dataloader.batch_size) // 4
    model = MODELS.build(cfg.model)
    assert isinstance(model, TeacherStudent)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    moments = sum(2 * 4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # one more while the newest is written and the oldest is still there; an export is less than the weights
    assert (hook.max_keep_ckpts + 1) * (2 * weights + moments) < GB / 2


def test_a_detector_keeps_one_checkpoint(coco_folder):
    splits = find_splits(coco_folder)
    for iterations in (20, 20000):
        hook = detector_config(splits['train'], splits['val'], iterations=iterations).default_hooks.checkpoint
        assert hook.max_keep_ckpts == 1 and hook.interval == iterations // 4
