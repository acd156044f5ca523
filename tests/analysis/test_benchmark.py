"""The benchmark: its counts against independent ones, its yardstick against our losses. Never a time."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from odis_mm.analysis import TextbookIBOT, benchmark, count_step, startup
from odis_mm.analysis.cost import Allocations, count_flops, total_loss
from odis_mm.cli.benchmarks import annotations_main, benchmark_main, gtsa_main, startup_main
from odis_mm.config import load_config
from odis_mm.engine.hooks import SelfSupScheduleHook
from odis_mm.models import ObjectViT
from odis_mm.models.backbones.block import run_block

D, F, LAYERS, HEADS, K = 32, 64, 3, 4, 24


def make_config(model=None, **changes):
    backbone = dict(
        type='ObjectViT',
        arch=dict(embed_dims=D, num_layers=LAYERS, num_heads=HEADS, feedforward_channels=F),
        img_size=32,
        patch_size=8,
        drop_path_rate=0.0,
    )
    model = model or dict(
        type='ODIS',
        backbone=backbone,
        head=dict(type='DistillationHead', num_prototypes=K),
        neck=dict(type='ProjectionNeck', in_channels=D, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
    )
    pipeline = [
        dict(type='LoadObjectImage'),
        dict(
            type='SampleViews',
            patch_size=8,
            views=[
                dict(role='global', num=2, size=32, scale=(0.25, 1.0)),
                dict(role='local', num=2, size=16, scale=(0.05, 0.25)),
            ],
        ),
        dict(type='RenderViews'),
        dict(type='PhotometricViews'),
        dict(type='BlockMasks', skip_prob=0.0),
        dict(type='PackViews'),
    ]
    cfg = Config(
        dict(
            model=model,
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                drop_last=True,
                collate_fn=dict(type='collate_views'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='ObjectDataset', pipeline=pipeline),
            ),
            optim_wrapper=dict(
                type='SafeOptimWrapper',
                optimizer=dict(type='AdamW', lr=1e-3),
                clip_grad=dict(max_norm=1.0),
                constructor='SelfSupOptimWrapperConstructor',
            ),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def make_step_input(cfg, batch=2):
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.set_progress(0, 100, 10)
    return model, model.data_preprocessor(benchmark.noise_batch(cfg, batch, 60, 80), True)


# ---- textbook
def test_textbook_losses_and_gradients_are_ours_without_object_masks():
    model, data = make_step_input(make_config(**{'model.masked_attention': False}))
    model.head.token_center.value.uniform_(-0.1, 0.1)
    model.head.patch_center.value.uniform_(-0.1, 0.1)
    with torch.no_grad():  # with a teacher like its student the losses hardly differ
        for parameter in model.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    found = {}
    for name, form in dict(ours=model, textbook=TextbookIBOT(model)).items():
        losses = form.compute_losses(data['inputs'], data['data_samples'])
        model.zero_grad()
        total_loss(losses).backward()
        found[name] = losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for name in ('loss_obj', 'loss_patch'):
        torch.testing.assert_close(found['ours'][0][name], found['textbook'][0][name], atol=1e-5, rtol=0)
    torch.testing.assert_close(found['ours'][1], found['textbook'][1], atol=1e-5, rtol=1e-4)


def test_object_masks_change_the_loss_that_the_textbook_has():
    model, data = make_step_input(make_config())
    ours = model.compute_losses(data['inputs'], data['data_samples'])['loss_obj']
    textbook = TextbookIBOT(model).compute_losses(data['inputs'], data['data_samples'])['loss_obj']
    assert abs(float(ours - textbook)) > 1e-5


def test_textbook_teacher_moves_as_ours():
    model, _ = make_step_input(make_config())
    other = copy.deepcopy(model)
    for m in (model, other):
        m.momentum = 0.9
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in m.backbone.parameters():
                parameter.add_(torch.randn_like(parameter))
    model.after_optimizer_step()
    TextbookIBOT(other).after_optimizer_step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), atol=1e-6, rtol=1e-5)


def test_textbook_refuses_what_is_no_ibot():
    model, _ = make_step_input(make_config(**{'model.lambda_patch': 0.0}))
    with pytest.raises(ValueError, match='lambda_patch'):
        TextbookIBOT(model)


# ---- counts
def forward_flops(images, tokens, read, patch_pixels=8 * 8 * 3):
    """A ViT's, by hand; ``read`` tokens leave the last block."""
    per_token = 2 * (3 * D * D + D * D + 2 * D * F) * LAYERS
    unread = 2 * (images * tokens - read) * (D * D + 2 * D * F)
    return images * (tokens * per_token + 4 * tokens**2 * D * LAYERS + 2 * (tokens - 1) * patch_pixels * D) - unread


def neck_flops(rows):
    return 2 * rows * (D * 40 + 40 * 40 + 40 * 16 + 16 * K)


@pytest.mark.parametrize('masked', [True, False])
def test_flops_of_a_step_are_those_counted_by_hand(masked):
    cfg = make_config(**{'model.masked_attention': masked})
    _, data = make_step_input(cfg)
    rows = 2 * 2, 2 * 2  # images in global and local views
    masks = len(data['data_samples']['mim_index'])
    student = forward_flops(rows[0], 17, rows[0] + masks) + forward_flops(rows[1], 5, rows[1])
    embedding = 2 * 8 * 8 * 3 * D * (rows[0] * 16 + rows[1] * 4)  # images take no gradient
    backward = 2 * student - embedding + 2 * neck_flops(sum(rows) + masks)
    expected = (
        student
        + neck_flops(sum(rows) + masks)
        + backward
        + forward_flops(rows[0], 17, rows[0] + masks)
        + neck_flops(rows[0] + masks)
    )
    losses = 3 * 2 * 2 * 4 * 2 * K  # the einsum over pairs of views, at most, both directions
    assert count_step(cfg.model, data).flops == pytest.approx(expected, abs=losses)


def test_counting_needs_no_values_and_recomputation_does_not_count():
    cfg = make_config(**{'model.backbone.arch.num_layers': 5})
    # activations must outweigh the gradients, and one block's the others', for the saving to show
    _, data = make_step_input(cfg, batch=16)
    plain = count_step(cfg.model, data)
    cfg.model.backbone.with_cp = True
    lean = count_step(cfg.model, data)
    assert plain.flops == lean.flops and plain.resting == lean.resting
    assert lean.peak < plain.peak
    assert count_step(cfg.model, data, bf16=True).peak < lean.peak * 1.2
    assert cfg.model.backbone.with_cp  # the config is as it was


def test_textbook_costs_more():
    cfg = make_config()
    _, data = make_step_input(cfg)
    ours, textbook = count_step(cfg.model, data), count_step(cfg.model, data, lambda m: TextbookIBOT(m).compute_losses)
    assert textbook.flops > ours.flops and textbook.peak > ours.peak


def test_the_odis_step_needs_at_most_three_quarters_of_the_textbook_s_memory():
    cfg = load_config('odis_vits_coco')
    preprocessor = MODELS.build({'type': 'ViewPreprocessor', **cfg.model.data_preprocessor})
    data = preprocessor(benchmark.noise_batch(cfg, 8), True)
    textbook = count_step(cfg.model, data, lambda m: TextbookIBOT(m).compute_losses, bf16=True)
    # of float32 and bf16, here and on GPUs, the worst
    assert count_step(cfg.model, data, bf16=True).peak < 0.75 * textbook.peak


@pytest.mark.parametrize('with_cp', [False, True])
def test_counted_memory_is_that_of_real_tensors(with_cp):
    cfg = make_config(**{'model.backbone.arch.num_layers': 5})
    cfg.model.backbone.with_cp = with_cp
    model, data = make_step_input(cfg, batch=16)
    model.train()
    model.set_progress(500, 1000, 1)
    with Allocations() as real:
        for tensor in (*model.parameters(), *model.buffers(), *data['inputs']):
            real.add(tensor)
        total_loss(model.loss(data['inputs'], data['data_samples'])).backward()
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert count_step(cfg.model, data).peak - 2 * trained == pytest.approx(real.peak, rel=0.02)


def test_allocations_follow_storages():
    with Allocations() as memory:
        a = torch.zeros(1000)
        view = a[10:].view(-1)
        b = torch.ones(500)
        assert memory.current == 6000
        del a
        assert memory.current == 6000  # the view holds it
        del view, b
        torch.zeros(1)
    assert memory.current == 0 and memory.peak == 6000


def test_fused_attention_is_counted():
    q = torch.randn(2, HEADS, 9, 8, requires_grad=True)
    forward = 4 * 2 * HEADS * 9 * 9 * 8
    assert count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == forward
    assert (
        count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()) == 3 * forward
    )


# ---- running
def test_model_benchmark_reports_every_part(tmp_path):
    cfg = make_config()
    found = benchmark.model_benchmark(cfg, torch.device('cpu'), 2, repeats=2, matrix_size=32)
    assert set(found['seconds']) == {'step', 'no masks', 'textbook iBOT'}
    assert all(len(times) == 2 for times in found['all_seconds'].values())
    assert all(found['split'][part] > 0 for part in benchmark.PARTS)
    assert found['gflop_per_image']['textbook iBOT'] > found['gflop_per_image']['step'] > 0
    assert {'peak_share', 'mask_overhead', 'mask_overhead_attention', 'speedup', 'memory_ratio'} <= set(found)
    json.dumps(found)


def test_split_adds_up_to_the_step():
    cfg = make_config()
    model, data = make_step_input(cfg)
    spent = benchmark.Step(model.train(), cfg, data)()
    assert sum(spent[part] for part in benchmark.PARTS) == pytest.approx(spent['step'])
    assert not model.backbone._forward_hooks and not model.neck.mlp[0]._forward_hooks  # nothing stays behind


def test_timed_step_is_the_training_step():
    # the second step shows the first one's centers
    cfg = make_config(**{'model.masked_attention': False, 'model.head.patch_center': 'all'})
    results = []
    for textbook in (False, True):
        model, data = make_step_input(cfg)
        step = benchmark.Step(model.train(), cfg, data, textbook=textbook)
        before = copy.deepcopy(model.teacher.state_dict())
        model.momentum = 0.9
        step()
        assert any((before[key] != value).any() for key, value in model.teacher.state_dict().items())
        step()
        results.append(float(step.loss))
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_fused_optimizer_gives_the_losses_of_the_plain_one():
    losses = {}
    for fused in (False, True):
        cfg = make_config(**{'optim_wrapper.optimizer.fused': fused})
        model, data = make_step_input(cfg)
        step = benchmark.Step(model.train(), cfg, data)
        losses[fused] = [(step(), float(step.loss))[1] for _ in range(4)]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5) and losses[True][3] != losses[True][0]


def test_teacher_stays_when_a_fused_optimizer_skips_a_step():
    cfg = make_config(**{'optim_wrapper.optimizer.fused': True})
    model, _ = make_step_input(cfg)
    moved = []
    model.after_optimizer_step = lambda: moved.append(1)
    optim = benchmark.Step(model, cfg, {}).optim
    hook = SelfSupScheduleHook()
    hook.before_train(SimpleNamespace(model=model, optim_wrapper=optim, train_dataloader=[0], iter=0, max_iters=10))
    for parameter in model.backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for found_inf, expected in ((torch.ones(()), 0), (torch.zeros(()), 1)):  # as torch.amp.GradScaler.step does
        optim.optimizer.grad_scale, optim.optimizer.found_inf = torch.ones(()), found_inf
        optim.optimizer.step()
        assert len(moved) == expected


def test_run_prints_and_keeps(shared_data):
    cfg = make_config()
    cfg.train_dataloader.dataset.update(data_root=str(shared_data / 'coco_boxes_256' / 'images'))
    found = benchmark.run(cfg, ['memory', 'data', 'end-to-end'], batch=2, repeats=1, images=2)
    text = benchmark.table(found)
    assert 'RenderViews' in text and 'data wait' in text and 'fits 16 GB' in text
    assert json.loads(json.dumps(found))['data']['images'] == 2
    assert set(found['data']['steps']) == {step['type'] for step in cfg.train_dataloader.dataset.pipeline}


def test_the_loader_is_timed_by_1_2_and_more_workers(shared_data, monkeypatch):
    monkeypatch.setattr(benchmark, 'cores', lambda: 2)
    cfg = make_config()
    cfg.train_dataloader.dataset.update(data_root=str(shared_data / 'coco_boxes_256' / 'images'), data_fraction=0.01)
    found = benchmark.run(cfg, ['loader'], batch=2, repeats=2)
    assert list(found['loader']) == ['1', '2'] and found['loader']['1']['share'] == 1
    two = found['loader']['2']
    assert two['images_per_s'] == pytest.approx(2 * two['share'] * found['loader']['1']['images_per_s'])
    assert '  2 workers' in benchmark.table(found)
    with pytest.raises(benchmark.ConfigError, match='2 batches are too few to time 2 workers'):
        benchmark.run(cfg, ['loader'], batch=10)


def test_missing_data_end_in_a_sentence():
    cfg = make_config()
    cfg.train_dataloader.dataset.update(data_root='no/such/folder')
    with pytest.raises(benchmark.ConfigError, match='--model-only needs none'):
        benchmark.data_benchmark(cfg)


def test_worker_advice_names_the_bottleneck():
    assert 'num_workers=3 ' in benchmark.worker_advice(8.0, 300.0, 16)
    assert 'limit this machine to 250 images/s' in benchmark.worker_advice(8.0, 3000.0, 2)


def test_vitl_preset_fits_24_gb():
    cfg = load_config('odis_vitl_coco_1gpu24g')
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == 256
    found = benchmark.run(cfg, ['memory'])
    assert found['memory']['resting_bytes'] > 304e6 * 16  # ViT-L's parameters, twice, and AdamW's moments
    assert found['memory']['fits']['24 GB']
    assert 'for batch 32 in bf16 autocast' in benchmark.table(found)  # as the config trains


def test_memory_of_images_of_more_channels_is_counted():
    cfg = make_config(**{'model.data_preprocessor': dict(mean=[1.0] * 5, std=[1.0] * 5)})
    cfg.train_dataloader.dataset.pipeline[0].channels = 5
    assert benchmark.run(cfg, ['memory'])['memory']['peak_bytes'] > 0


def test_steps_with_pooled_objects_are_counted():
    """How many objects are there depends on the images: all of them are counted."""
    few, some = (load_config('odis_small') for _ in range(2))
    next(step for step in few.train_dataloader.dataset.pipeline if step.type == 'SampleViews').others = 0
    few.model.lambda_pool = 0
    found = [benchmark.run(cfg, ['memory'])['memory'] for cfg in (few, some)]
    assert found[0]['resting_bytes'] == found[1]['resting_bytes'] < found[0]['peak_bytes'] < found[1]['peak_bytes']


@pytest.mark.parametrize(
    'mode, part',
    [('--model-only', 'model'), ('--data-only', 'data'), ('--end-to-end', 'end-to-end'), ('--memory-only', 'memory')],
)
def test_command_line_prints_and_keeps_what_was_asked_for(mode, part, shared_data, tmp_path, monkeypatch, capsys):
    cfg = make_config()
    cfg.train_dataloader.dataset.update(data_root=str(shared_data / 'coco_boxes_256' / 'images'))
    cfg.dump(tmp_path / 'tiny.py')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, 'matrix_peak', lambda *_: 1e9)
    benchmark_main(
        [
            str(tmp_path / 'tiny.py'),
            mode,
            '--device',
            'cpu',
            '--batch',
            '2',
            '--repeats',
            '1',
            '--images',
            '2',
            '--out',
            'kept/numbers.json',
            '--cfg-options',
            'train_dataloader.drop_last=False',
        ]
    )
    text = (tmp_path / 'kept' / 'numbers.json').read_text()
    found = json.loads(text)
    assert part in found and not {'model', 'data', 'end-to-end', 'memory'} - {part} & set(found)
    assert str(tmp_path) not in text and str(shared_data) not in text
    assert 'tiny.py' in capsys.readouterr().out


def test_command_line_ends_wrong_input_in_a_sentence(capsys):
    with pytest.raises(SystemExit) as error:
        benchmark_main(['no_such_recipe', '--memory-only'])
    assert error.value.code == 2 and 'no_such_recipe' in capsys.readouterr().err


def test_compile_option_asks_for_an_object_vit():
    cfg = make_config()
    model = benchmark.build_model(cfg, torch.device('cpu'), compiled=True)
    assert model.backbone.block is not model.teacher['backbone'].block and model.backbone.block.__name__ == 'run_block'
    cfg = load_config('alfm_r50_coco')
    with pytest.raises(benchmark.ConfigError, match='ResNet'):
        benchmark.build_model(cfg, torch.device('cpu'), compiled=True)


def test_losses_and_heads_are_apart():
    found = benchmark.model_benchmark(make_config(), torch.device('cpu'), 2, repeats=1, matrix_size=32)
    split = found['split']
    assert 0 < found['loss_share'] < 1
    assert found['loss_share'] == pytest.approx(
        (split['loss'] + split['backward, loss']) / found['seconds']['step'], rel=1e-3
    )


def test_options_are_timed_beside_the_plain_step(monkeypatch):
    calls = []

    def compile_blocks(self):
        self.block = lambda *args: (calls.append(self), run_block(*args))[1]

    monkeypatch.setattr(ObjectViT, 'compile_blocks', compile_blocks)
    monkeypatch.setattr(benchmark, 'onednn_is_faster', lambda: True)
    forms = {'plain', 'packed', 'compiled', 'subset', 'F.linear'}
    found = benchmark.options_benchmark(make_config(), torch.device('cpu'), 2, repeats=2)
    assert set(found) - {'batch'} == forms and found['plain']['ratio'] == 1
    for form in forms:
        assert len(found[form]['all_seconds']) == 2 and found[form]['first'] > 0
        if form != 'subset':  # which may drop other images
            assert found[form]['loss'] == pytest.approx(found['plain']['loss'], abs=1e-5)
    assert len(set(calls)) == 2  # student and teacher
    assert '  compiled' in benchmark.table(
        dict(config='', dtype='', threads=1, date='', hardware='', repeats=2, load=0.0, options=found)
    )


def test_options_of_a_model_without_any_end_in_a_sentence():
    with pytest.raises(benchmark.ConfigError, match='neither'):
        benchmark.options_benchmark(load_config('alfm_r50_coco'), torch.device('cpu'), 2)


def test_the_gtsa_step_is_timed_beside_its_slow_forms(capsys):
    gtsa_main(['--config', 'gtsa_demo', '--batch', '1', '--threads', '1', '--repeats', '1', '--amp'])
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert lines[0].startswith('gtsa_demo, batch 1, ') and ' bf16 autocast, ' in lines[0]
    assert all(float(line.split(' s ')[0].split()[-1]) > 0 for line in lines[1:5])
    step, heads, slow, _ = (float(line.split()[-4]) for line in lines[1:5])  # GFLOP per image
    assert 0 < heads < step < slow


def test_start_up_is_the_time_to_the_first_iteration(tmp_path, capsys):
    fake = tmp_path / 'train.py'
    fake.write_text(
        'import sys, time\n'
        "print('reading', *sys.argv[1:], flush=True)\n"
        "if sys.argv[1] == 'bad': sys.exit('no such config')\n"
        "print('Epoch(train)   [1][ 1/15]  loss: 1.0', flush=True)\n"
        'time.sleep(600)\n'
    )
    train = (sys.executable, str(fake))
    startup_main(['good', '--repeats', '1', '--out', str(tmp_path / 'kept.json')], train)
    kept = json.loads((tmp_path / 'kept.json').read_text())
    assert 0 < kept['median'] == kept['seconds'][0] < 60 and 'good: first iteration after' in capsys.readouterr().out
    with pytest.raises(benchmark.ConfigError, match='limit 1.*reading silent'):
        fake.write_text(fake.read_text().replace("print('Epoch", "time.sleep(600); print('Epoch"))
        startup.seconds_to_first_iteration('silent', train=train, limit=1.0)
    with pytest.raises(benchmark.ConfigError, match='no such config'):
        startup.seconds_to_first_iteration('bad', train=train)


def test_large_annotations_are_timed_first_and_again(tmp_path, capsys):
    fake = tmp_path / 'train.py'
    fake.write_text(
        'import os, pathlib, time\n'
        "root = pathlib.Path(os.environ['COCO_ROOT'])\n"
        "assert (root / 'annotations/instances_train2017.json').is_file()\n"
        "assert len(list(root.glob('train2017/*'))) == 40\n"
        "cache = pathlib.Path(os.environ['ODIS_MM_CACHE'])\n"
        'cache.mkdir(exist_ok=True)\n'
        f"print(len(list(cache.iterdir())), file=open({str(tmp_path / 'caches')!r}, 'a'))\n"
        "(cache / 'x').write_text('columns')\n"
        "print('Epoch(train)   [1][ 1/15]  loss: 1.0', flush=True)\n"
        'time.sleep(600)\n'
    )
    size = ['--images', '40', '--objects', '120', '--repeats', '1', '--out', str(tmp_path / 'kept.json')]
    annotations_main([*size, '--train'], (sys.executable, str(fake)))
    kept = json.loads((tmp_path / 'kept.json').read_text())
    assert kept['first'][0]['read_us'] > 0 and kept['again'][0]['cpu'] > 0
    assert 0 < kept['start_first'][0] < 60 and 0 < kept['start_again'][0] < 60
    assert (tmp_path / 'caches').read_text() == '0\n1\n', 'the first start has none'
    assert capsys.readouterr().out.count('first iteration after') == 2
    annotations_main(size)
    assert 'start_first' not in json.loads((tmp_path / 'kept.json').read_text())
