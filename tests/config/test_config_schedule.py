"""A run of another length has a schedule of that length: warm-up, cosine and milestones scale with it, and the log says
so."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

import odis_mm  # noqa: F401
from odis_mm.config import MADE, beyond_the_end, check_schedule, fit_schedule, in_iterations, load_config
from odis_mm.utils.errors import ConfigError


def rates(parts, iterations, epoch_length=1, lr=1.0):
    """Learning rate of each iteration, as mmengine's own schedulers have it."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optim = OptimWrapper(torch.optim.SGD([weight], lr=lr))
    built = []
    for part in parts:
        part = dict(part)
        part.setdefault('end', iterations if not part.get('by_epoch', True) else iterations / epoch_length)
        built.append(PARAM_SCHEDULERS.build(part, default_args=dict(optimizer=optim, epoch_length=epoch_length)))
    values = []
    for iteration in range(1, iterations + 1):
        values.append(optim.optimizer.param_groups[0]['lr'])
        optim.step()
        for scheduler in built:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return values


def test_a_detector_by_iterations_ends_at_the_end_of_its_cosine():
    pytest.importorskip('mmdet')
    cfg = load_config('mask-rcnn_demo', {'train_cfg.max_iters': 40})
    (line,) = fit_schedule(cfg)
    warmup, cosine = cfg.param_scheduler
    assert warmup.end == cosine.begin == 3 and cosine.end == 40 and cosine.T_max == 37
    assert line.startswith(
        'train_cfg.max_iters is 600 in mask-rcnn_demo.py and 40 here: the schedule is scaled with it'
    )
    assert 'param_scheduler.0.end 50 -> 3' in line and 'param_scheduler.1.T_max 550 -> 37' in line
    values = rates(cfg.param_scheduler, 40)
    assert max(values) == values[3] == 1.0 and values[-1] < 0.01
    assert fit_schedule(cfg) == [] or cfg.param_scheduler[0].end == 3, 'a second look changes nothing'
    assert cfg.param_scheduler[1].T_max == 37


def test_a_config_made_for_its_length_is_left_alone(tmp_path):
    """A resumed run of more steps: the file of its name is that of the shorter one."""
    parts = [dict(type='LinearLR', by_epoch=False, begin=0, end=50), dict(type='ConstantLR', by_epoch=False, begin=50)]
    file = tmp_path / 'detector.py'
    for length, text in ((300, None), (3000, MADE)):
        content = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=length), param_scheduler=parts)
        cfg = Config(content, cfg_text=text, filename=str(file) if text else None)
        if text is None:
            cfg.dump(file)
    assert fit_schedule(cfg) == [] and cfg.param_scheduler[0].end == 50
    read = load_config(str(file), {'train_cfg.max_iters': 3000})
    assert fit_schedule(read) and read.param_scheduler[0].end == 500


@pytest.mark.parametrize('epochs, drops', [(12, (24, 33)), (6, (12, 16)), (2, (4, 5)), (1, (2, 3))])
def test_milestones_of_a_short_detector_run_keep_their_shares(epochs, drops):
    pytest.importorskip('mmdet')
    cfg = load_config('mask-rcnn_vits_fpn_1x_coco', {'train_cfg.max_epochs': epochs})
    fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == round(1000 * epochs / 12)
    length = 3  # iterations of an epoch
    parts = in_iterations(cfg.param_scheduler, length)
    steps = parts[1]
    assert tuple(steps['milestones']) in (drops, tuple(drop / length for drop in drops))
    values = rates([steps], epochs * length, length)
    assert values[drops[0] - 1] == 1.0 and values[drops[0]] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.01 if drops[1] < epochs * length else 0.1)


def test_a_short_pretraining_has_a_short_warmup():
    cfg = load_config('odis_vits_coco', {'train_cfg.max_epochs': 5})
    (line,) = fit_schedule(cfg)
    check_schedule(cfg)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 0.5 and '10 -> 0.5' in line
    parts = in_iterations(cfg.param_scheduler, 8)
    assert [part['by_epoch'] for part in parts] == [False, False] and parts[0]['end'] == parts[1]['begin'] == 4
    values = rates(parts, 40)
    assert max(values) == values[4] and values[-1] < 0.01
    (cosine,) = in_iterations(cfg.param_scheduler, 1)  # an epoch is one step: there is no room for a warm-up
    assert cosine['begin'] == 0 and rates([cosine], 5)[0] == 1.0


@pytest.mark.parametrize('iterations', [2, 6])
def test_a_warmup_of_one_iteration_is_left_out(iterations):
    """It would leave the rate at a hundredth of the peak for the whole run."""
    pytest.importorskip('mmdet')
    cfg = load_config('mask-rcnn_demo', {'train_cfg.max_iters': iterations})
    fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == 1
    (cosine,) = in_iterations(cfg.param_scheduler, 8)
    values = rates([cosine], iterations)
    assert values[0] == 1.0 and values == sorted(values, reverse=True)
    whole = load_config(
        'odis_demo', {'train_cfg.max_epochs': 4, 'param_scheduler.0.end': 1, 'param_scheduler.1.begin': 1}
    )
    assert len(in_iterations(whole.param_scheduler, 1)) == 1 and len(in_iterations(whole.param_scheduler, 2)) == 2


def test_a_longer_run_is_scaled_too():
    cfg = load_config('odis_vits_coco', {'train_cfg.max_epochs': 200})
    fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 20


@pytest.mark.parametrize(
    'name, options, told',
    [
        ('odis_demo', {'train_cfg.max_epochs': None, 'train_cfg.max_iters': 40}, 'max_iters 40 here'),  # 10 epochs
        ('gtsa_small', {'train_cfg.max_epochs': 10, 'train_cfg.max_iters': None}, 'max_epochs 10 here'),
    ],
)
def test_a_length_in_the_other_unit_is_followed(name, options, told):
    """What the message for a part of an epoch advises: another unit must not leave the schedule in the former one."""
    cfg = load_config(name, options)
    (line,) = fit_schedule(cfg)
    assert told in line
    values = rates([dict(part) for part in cfg.param_scheduler], 40, epoch_length=4)
    assert values[0] < 0.01 and values[-1] < 0.01 and values[3:5] == pytest.approx([1, 1])  # warm-up: a tenth


def test_what_the_options_set_stays():
    options = {'train_cfg.max_epochs': 4, 'param_scheduler.0.end': 2}
    cfg = load_config('odis_vits_coco', options)
    lines = fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 2, 'the cosine follows the warm-up'
    assert 'as set by options, not scaled: param_scheduler.0.end' in lines[-1]
    cfg = load_config('odis_vits_coco', {**options, 'param_scheduler.1.begin': 2})
    fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 2
    cfg = load_config('odis_vits_coco', {'train_cfg.max_epochs': 4, 'param_scheduler.1.begin': 9})
    fit_schedule(cfg)
    with pytest.raises(ConfigError, match='param_scheduler.1 .* begins at epoch 9, but training ends at epoch 4'):
        check_schedule(cfg)


def test_a_run_of_its_own_length_and_a_config_without_a_file_are_left_alone():
    cfg = load_config('odis_vits_coco', {'train_dataloader.batch_size': 8})
    before = Config(cfg._cfg_dict.to_dict())
    assert fit_schedule(cfg) == [] and cfg.param_scheduler == before.param_scheduler
    bare = Config(dict(train_cfg=dict(max_epochs=2), param_scheduler=[dict(type='LinearLR', end=10)]))
    assert fit_schedule(bare) == [] and bare.param_scheduler[0].end == 10
    assert in_iterations(cfg.param_scheduler, 7) is cfg.param_scheduler, 'whole epochs stay epochs'


@pytest.mark.parametrize(
    'name, told',
    [
        ('gtsa_vits_coco', ['model.head.correspondence_epoch=11']),
        ('odis_vits_coco', ['model.head.teacher_temp.warmup_epochs=30']),
    ],
)
def test_what_a_short_run_does_not_reach_is_told(name, told):
    cfg = load_config(name)
    assert not beyond_the_end(cfg, cfg.train_cfg.max_epochs)
    lines = beyond_the_end(cfg, 5)
    assert [line.split(',')[0] for line in lines] == told and all('the run has 5 epochs' in line for line in lines)
    assert any('prototypes' in line for line in beyond_the_end(cfg, 0.5)) == name.startswith('odis')
