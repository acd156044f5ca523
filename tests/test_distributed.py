"""The same run on 1, 2 and 4 processes: whole recipes in small, through the command line's own way."""
import gc
import os
import socket
import sys
from pathlib import Path

import mmengine.runner.runner
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from test_knn import folder  # noqa: F401 (a fixture)
from test_models import make_vit
from test_regions import coco, direct  # noqa: F401

from odis_mm import apis
from odis_mm.datasets.demo import ensure_demo
from odis_mm.evaluation import FrozenBackbone, LabelledImages, image_features, knn_images, labelled_split

WORLDS, GLOBAL_BATCH, IMAGES, EPOCHS = (1, 2, 4), 8, 22, 2
METHODS = ('odis', 'gtsa', 'alfm')
CASES = {f'{method}_{kind}': (method, kind) for method in METHODS for kind in ('plain', 'accumulated')}
CASES['odis_uneven'] = ('odis', 'uneven')
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


@HOOKS.register_module(force=True)
class Record(Hook):
    """What an iteration saw and gave, and the gradients of each optimizer step, after clipping."""

    def before_train(self, runner) -> None:
        self.iterations, self.gradients = [], []
        self.start = {name: value.clone() for name, value in unwrap(runner).state_dict().items()}
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(
            {name: p.grad.clone() for name, p in unwrap(runner).named_parameters() if p.grad is not None}))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        samples = data_batch['data_samples']
        self.iterations.append(dict(
            images=samples['img_id'].tolist(), visible=int(samples['object_visible'].sum()) if 'object_visible' in samples else 0,
            masked=int(samples['mim_mask'].sum()) if 'mim_mask' in samples else 0,
            losses={key: float(value) for key, value in outputs.items() if 'loss' in key}))

    def after_train(self, runner) -> None:
        model = unwrap(runner)
        runner.recorded = dict(iterations=self.iterations, gradients=self.gradients, start=self.start, state=model.state_dict(),
                               trained=[name for name, p in model.named_parameters() if p.requires_grad])


def unwrap(runner):
    return getattr(runner.model, 'module', runner.model)


def small(method: str, data: str, kind: str) -> Config:
    """The recipe for COCO with a tiny ViT and tiny views; SGD in big steps, as Adam would blow up the rounding of gradients near 0."""
    cfg = apis.load_config(f'{method}_vits_coco')
    model, loader = cfg.model, cfg.train_dataloader
    model.backbone.update(arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.)
    model.neck.update(in_channels=32, hidden_channels=24)
    model.momentum = dict(start=.7, end=1.)
    if method == 'gtsa':
        model.neck.out_channels = 20
        model.head.update(in_channels=32, crop_cells=(3, 2), num_matches=(8, 2), rotation_channels=(16, 12), correspondence_epoch=1)
        model.head.predictor.update(in_channels=20, hidden_channels=16, out_channels=20)
    else:
        model.neck.update(bottleneck_channels=12, num_prototypes=16)
        model.head.num_prototypes = 16
    if method == 'alfm':
        model.head.num_cells = 3
    dataset = loader.dataset
    dataset.data_root = data
    sample = dataset.pipeline[1]
    sample.patch_size = 8
    for group in sample.views:
        group.update(size=32 if group.role == 'global' else 16, num=2)
    if method == 'odis':
        sample.update(min_cover=.5, tries=1)  # many objects are not visible
    loader.update(batch_size=GLOBAL_BATCH // get_world(), num_workers=0, drop_last=kind != 'uneven')
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1., weight_decay=.04)
    cfg.optim_wrapper.accumulative_counts = 2 if kind == 'accumulated' else 1
    cfg.auto_scale_lr.enable = False
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = EPOCHS
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'ExportTeacherHook'] + [dict(type='Record')]
    cfg.default_hooks.checkpoint.update(interval=1000, save_last=False)
    cfg.log_level = 'INFO' if kind == 'uneven' else 'WARNING'
    return cfg


def get_world() -> int:
    return int(os.environ['WORLD_SIZE'])


def rank_main(rank: int, world: int, path: str, data: str, ports: dict, labelled: str, regions: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1')
    for name, (method, kind) in CASES.items():
        os.environ['MASTER_PORT'] = str(ports[world, name])
        runner = apis.train(small(method, data, kind), work_dir=f'{path}/{name}_{world}', launcher='pytorch')
        said = Path(runner.log_dir, f'{runner.timestamp}.log').read_text() if rank == 0 and kind == 'uneven' else ''
        torch.save(dict(runner.recorded, said=said), f'{path}/{name}_{world}_{rank}.pt')
    torch.distributed.init_process_group('gloo', init_method=f'file://{path}/store{world}', rank=rank, world_size=world)
    frozen = FrozenBackbone(make_vit())
    features = image_features(frozen, LabelledImages(f'{labelled}/val', 32, most=17))
    knn = knn_images(frozen, *labelled_split(labelled, frozen, 32), ks=(1, 5))
    torch.save(dict(features=features, knn=knn, regions=direct(make_vit(), Path(regions))), f'{path}/frozen_{world}_{rank}.pt')
    torch.distributed.destroy_process_group()


def launch(_, path: str, *args) -> None:
    """Imports once, and forks all ranks of all world sizes: it has never called backward, after which torch forbids that."""
    sys.stdout = sys.stderr = open(f'{path}/log.txt', 'w')
    mmengine.runner.runner.collect_env = lambda: {}  # seconds a run, and nothing but a report
    Config.pretty_text = property(lambda self: '')
    gc.freeze()  # else each rank's first collection would copy all that they share
    for world in WORLDS:
        mp.start_processes(rank_main, args=(world, path, *args), nprocs=world, start_method='fork')


def free_ports(count: int) -> list:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(('127.0.0.1', 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope='module')
def runs(tmp_path_factory, folder, coco) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp('runs')
    data = ensure_demo(path / 'demo', num_train=IMAGES, num_val=1, size=64)
    names = [(world, name) for world in WORLDS for name in CASES]
    mp.spawn(launch, args=(str(path), data, dict(zip(names, free_ports(len(names)))), str(folder), str(coco)), nprocs=1)
    return path


def load(runs: Path, name: str, world: int) -> list:
    return [torch.load(runs / f'{name}_{world}_{rank}.pt', weights_only=False) for rank in range(world)]


@pytest.mark.parametrize('name', [name for name in CASES if 'uneven' not in name])
def test_two_and_four_ranks_equal_one(runs, name):
    alone, = load(runs, name, 1)
    accumulated = name.endswith('accumulated')
    assert len(alone['iterations']) == EPOCHS * (IMAGES // GLOBAL_BATCH) == len(alone['gradients']) * (1 + accumulated)
    for world in WORLDS[1:]:
        ranks = load(runs, name, world)
        assert all(len(rank['iterations']) == len(alone['iterations']) for rank in ranks)
        for one, *parts in zip(alone['iterations'], *(rank['iterations'] for rank in ranks)):
            assert sorted(sum((part['images'] for part in parts), [])) == sorted(one['images'])
            for key, value in one['losses'].items():
                assert sum(part['losses'][key] for part in parts) / world == pytest.approx(value, abs=1e-5), key
        for rank in ranks:
            for key, value in alone['state'].items():
                torch.testing.assert_close(rank['state'][key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f'{world} ranks, {key}: {m}')
            for step, gradients in enumerate(alone['gradients']):
                assert gradients.keys() == rank['gradients'][step].keys()
                for key, value in gradients.items():
                    torch.testing.assert_close(rank['gradients'][step][key], value, atol=1e-5, rtol=1e-4,
                                               msg=lambda m: f'{world} ranks, step {step}, {key}: {m}')


@pytest.mark.parametrize('method', METHODS)
def test_it_was_a_training(runs, method):
    """All student weights got a gradient in some step and moved, with the teacher and the centers: nothing above was 0 = 0."""
    alone, = load(runs, f'{method}_plain', 1)
    moved = {key for key, value in alone['state'].items() if (value - alone['start'][key]).abs().max() > 4e-5}
    still = set(alone['state']) - moved
    assert {key for gradients in alone['gradients'] for key, value in gradients.items() if value.abs().max() > 0} == set(alone['trained'])
    assert not [key for key in still if not key.endswith(('ln1.bias', 'mean', 'std'))], still
    centers = [key for key in moved if 'center' in key]
    assert len(centers) == dict(odis=2, gtsa=0, alfm=1)[method]


def test_ranks_had_uneven_shares(runs):
    ranks = load(runs, 'odis_plain', 4)
    assert any(len({part['visible'] for part in parts}) > 1 for parts in zip(*(rank['iterations'] for rank in ranks)))
    assert any(len({part['masked'] for part in parts}) > 1 for parts in zip(*(rank['iterations'] for rank in ranks)))
    masked = [part['masked'] for rank in ranks for part in rank['iterations']]
    assert 0 in masked and max(masked) > 0, 'some rank had no masked patch at all'


@pytest.mark.parametrize('world', WORLDS)
def test_uneven_last_batches(runs, world):
    """22 images: four ranks take 20 of them, and say so; the last batch is smaller on all ranks alike, and none waits for another."""
    ranks = load(runs, 'odis_uneven', world)
    drawn = IMAGES // world * world
    for epoch in range(EPOCHS):
        share = slice(epoch * 3, (epoch + 1) * 3)
        images = sum((part['images'] for rank in ranks for part in rank['iterations'][share]), [])
        assert len(images) == len(set(images)) == drawn
        assert all([len(part['images']) * world for part in rank['iterations'][share]] == [8, 8, drawn - 16] for rank in ranks)
    left = '; 2 left over that fill no batch of all ranks, others in each epoch' if drawn < IMAGES else ''
    assert f'an epoch: 3 iterations, {drawn} of {IMAGES} images, each once{left}\n' in ranks[0]['said']


@pytest.mark.parametrize('world', WORLDS[1:])
def test_frozen_measures_do_not_depend_on_ranks(runs, world):
    alone, = load(runs, 'frozen', 1)
    for rank in load(runs, 'frozen', world):
        assert rank['knn'] == alone['knn'] and rank['regions'] == pytest.approx(alone['regions'], abs=1e-3)
        torch.testing.assert_close(rank['features'][0], alone['features'][0], atol=1e-6, rtol=0)  # of 17 images: not as many on each
        assert torch.equal(rank['features'][1], alone['features'][1])
