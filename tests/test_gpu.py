"""What a GPU computes is what the CPU does, and trainings go through there.

    ODIS_MM_TEST_GPU=1 python -m pytest tests/test_gpu.py

``tools/run_tests.sh`` does so where there is a GPU; the rest of the suite does not see it.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from helpers import DEMO_RECIPES, FOUR_STEPS, make_vit
from odis_mm import apis
from odis_mm.analysis.benchmark import build_model, noise_batch
from odis_mm.analysis.cost import total_loss
from odis_mm.config import load_config, parse_options
from odis_mm.datasets.layout import find_splits
from odis_mm.recipes import detector_config
from odis_mm.transfer import load_backbone
from odis_mm.transfer.build import build_vit
from odis_mm.utils.environment import detectors_lack_gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU, or ODIS_MM_TEST_GPU=1 is not set')


@pytest.fixture(autouse=True)
def exact_products():
    """Products of full float32, without the short ones of some processors."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def losses_and_gradients(cfg, raw, device, bf16=False):
    model = build_model(copy.deepcopy(cfg), torch.device(device), False)
    model.set_progress(500, 1000, 10)
    data = model.data_preprocessor(copy.deepcopy(raw), True)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        losses = model.compute_losses(data['inputs'], data['data_samples'])
    total_loss(losses).backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {name: float(value.detach()) for name, value in losses.items()}, gradients


@pytest.mark.parametrize('on_device', [False, True])
@pytest.mark.parametrize('name', DEMO_RECIPES)
def test_losses_and_gradients_are_those_of_the_cpu(name, on_device):
    init_default_scope('mmpretrain')
    cfg = load_config(name, {'model.backbone.drop_path_rate': 0.0})  # whose draws are the device's
    for step in cfg.train_dataloader.dataset.pipeline:
        if step['type'] == 'PhotometricViews':
            step['on_device'] = on_device
    raw = noise_batch(cfg, 4)
    (losses, gradients), (found, moved) = (losses_and_gradients(cfg, raw, device) for device in ('cpu', 'cuda'))
    assert found == pytest.approx(losses, rel=1e-3 if on_device else 1e-4, abs=1e-4)
    assert moved.keys() == gradients.keys()
    # what a norm over the batch takes away again, such as biases before it, has a gradient of rounding alone
    least = 1e-3 * torch.stack([value.norm() for value in gradients.values()]).norm()
    for key, wanted in gradients.items():
        error = (moved[key] - wanted).norm() / wanted.norm().clamp(min=least)
        assert error < (0.05 if on_device else 5e-3), key


@pytest.mark.parametrize('name', DEMO_RECIPES)
def test_bf16_is_near_float32(name):
    init_default_scope('mmpretrain')
    cfg = load_config(name, {'model.backbone.drop_path_rate': 0.0})
    raw = noise_batch(cfg, 4)
    (losses, _), (found, _) = (losses_and_gradients(cfg, raw, 'cuda', bf16) for bf16 in (False, True))
    assert found == pytest.approx(losses, rel=0.02, abs=0.02)


@pytest.mark.parametrize('amp', [None, 'bf16', 'fp16'])
@pytest.mark.parametrize('name', DEMO_RECIPES)
def test_trains_and_resumes(name, amp, demo, tmp_path):
    options = {
        **parse_options(FOUR_STEPS),
        'train_dataloader.dataset.data_root': demo,
        'default_hooks.checkpoint.interval': 1,
    }
    apis.train(name, work_dir=str(tmp_path), options=options, amp=amp)
    options['train_cfg.max_epochs'] = 2
    apis.train(name, work_dir=str(tmp_path), options=options, amp=amp, resume='auto')
    rows = [
        json.loads(line)
        for file in sorted(tmp_path.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    assert [row['step'] for row in rows if 'loss' in row] == list(range(1, 9))
    assert all(np.isfinite(row['loss']) and row['memory'] > 0 for row in rows if 'loss' in row)


@pytest.mark.parametrize('amp', [None, 'fp16'])
def test_detectors_train_resume_and_are_tested(amp, coco_folder, tmp_path):
    if detectors_lack_gpu():
        pytest.skip("mmcv's operators are compiled for CPUs alone")
    splits = find_splits(str(coco_folder))
    options = {
        'model.backbone.arch.num_layers': 2,
        'model.backbone.out_indices': [0, 1],
        'default_hooks.logger.interval': 1,
    }

    def config(iterations):
        return detector_config(splits['train'], splits['val'], size=64, iterations=iterations, batch=4, options=options)

    apis.train(config(2), work_dir=str(tmp_path), amp=amp)
    runner = apis.train(config(4), work_dir=str(tmp_path), amp=amp, resume='auto')
    states = runner.optim_wrapper.optimizer.state.values()
    assert {state['step'].device.type for state in states} == {'cpu'}, 'on the GPU each would be waited for'
    rows = [
        json.loads(line)
        for file in sorted(tmp_path.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    losses = [row for row in rows if 'loss' in row]
    assert [row['step'] for row in losses] == [1, 2, 3, 4] and all(np.isfinite(row['loss']) for row in losses)
    found = apis.test(config(4), str(Path(tmp_path, 'iter_4.pth')), work_dir=str(tmp_path / 'test'))
    assert 0 <= found['coco/bbox_mAP'] <= 1


def test_backbones_are_built_and_loaded_beside_a_gpu():
    """Tensors may be on it, and its random numbers stay as they are."""
    model, fresh = make_vit().cuda(), make_vit().cuda()
    before = torch.cuda.get_rng_state()
    load_backbone(fresh, {key: value + 1 for key, value in model.state_dict().items()})
    assert torch.equal(fresh.cls_token, model.cls_token + 1)
    built = build_vit({key: value.cpu() for key, value in model.state_dict().items()}, 4)
    assert torch.equal(built.cls_token, model.cls_token.cpu()) and torch.equal(torch.cuda.get_rng_state(), before)
