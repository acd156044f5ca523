"""The same run on 1, 2 and 4 processes: whole recipes in small, through the command line's own way."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ddp_helpers import free_port
from helpers import ROOT, forked, make_vit, measure_regions
from odis_mm import apis
from odis_mm.cli import train as cli
from odis_mm.datasets.demo import ensure_demo
from odis_mm.evaluation import FrozenBackbone, LabelledImages, image_features, knn_images, labelled_split
from odis_mm.transfer import load_local
from odis_mm.utils.distributed import whole
from odis_mm.utils.errors import MissingPeersError
from odis_mm.utils.peers import await_peers

pytestmark = pytest.mark.slow

WORLDS, GLOBAL_BATCH, IMAGES, EPOCHS = (1, 2, 4), 8, 22, 2
METHODS = ('odis', 'gtsa', 'alfm')
CASES = {f'{method}_plain': (method, 'plain') for method in METHODS}
CASES.update({f'{method}_accumulated': (method, 'accumulated') for method in ('odis', 'alfm')})  # these have centers
CASES['odis_uneven'] = ('odis', 'uneven')
SHARDED = [f'{method}_sharded' for method in METHODS]
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


@HOOKS.register_module(force=True)
class Preempt(Hook):
    """A signal to one rank in the first iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == 0 and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


@HOOKS.register_module(force=True)
class Record(Hook):
    """What an iteration saw and gave, and the gradients of each optimizer step, after clipping."""

    def before_train(self, runner) -> None:
        self.iterations, self.gradients = [], []
        self.start = {name: whole(value).clone() for name, value in unwrap(runner).state_dict().items()}
        runner.optim_wrapper.optimizer.register_step_pre_hook(
            lambda *_: self.gradients.append(
                {name: whole(p.grad).clone() for name, p in unwrap(runner).named_parameters() if p.grad is not None}
            )
        )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        samples = data_batch['data_samples']
        self.iterations.append(
            dict(
                images=samples['img_id'].tolist(),
                visible=int(samples['object_visible'].sum()) if 'object_visible' in samples else 0,
                masked=int(samples['mim_mask'].sum()) if 'mim_mask' in samples else 0,
                losses={key: float(value) for key, value in outputs.items() if 'loss' in key},
            )
        )

    def after_train(self, runner) -> None:
        model = unwrap(runner)
        runner.recorded = dict(
            iterations=self.iterations,
            gradients=self.gradients,
            start=self.start,
            state={name: whole(value) for name, value in model.state_dict().items()},
            trained=[name for name, p in model.named_parameters() if p.requires_grad],
        )


def unwrap(runner):
    return getattr(runner.model, 'module', runner.model)


def small(method: str, data: str, kind: str) -> Config:
    """The recipe for COCO with a tiny ViT and tiny views; SGD in big steps, as Adam would blow up the rounding of
    gradients near 0."""
    cfg = apis.load_config('odis_vitl_coco_fsdp' if kind == 'recipe' else f'{method}_vits_coco')
    model, loader = cfg.model, cfg.train_dataloader
    model.backbone.update(arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0)
    if method == 'odis':  # the ViT of DINOv3; the other methods have a plain one
        model.backbone.update(num_registers=2, rope=dict(base=100), key_bias=False, layer_scale_init_value=0.5)
    model.neck.update(in_channels=32, hidden_channels=24)
    model.momentum = dict(start=0.7, end=1.0)
    if method == 'gtsa':
        model.neck.out_channels = 20
        model.head.update(
            in_channels=32, crop_cells=(3, 2), num_matches=(8, 2), rotation_channels=(16, 12), correspondence_epoch=1
        )
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
        sample.update(min_cover=0.5, tries=1)  # many objects are not visible
    loader.update(batch_size=GLOBAL_BATCH // get_world(), num_workers=0, drop_last=kind != 'uneven')
    if kind != 'recipe':
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1.0, momentum=0.5, weight_decay=0.04)
    cfg.optim_wrapper.accumulative_counts = 2 if kind == 'accumulated' else 1
    cfg.auto_scale_lr.enable = False
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = EPOCHS
    cfg.default_hooks.export = cfg.default_hooks.views = None
    cfg.custom_hooks = [dict(type='Record')]
    cfg.default_hooks.checkpoint.update(interval=1000, save_last=False)
    if kind == 'sharded':
        fsdp = apis.load_config('odis_vitl_coco_fsdp')
        cfg.update(runner_type=fsdp.runner_type, strategy=fsdp.strategy)
        cfg.default_hooks.checkpoint.interval = 1
        cfg.default_hooks.export = dict(type='ExportTeacherHook')
        cfg.default_hooks.health.interval = 2
    cfg.log_level = 'INFO' if kind == 'uneven' else 'WARNING'
    return cfg


def get_world() -> int:
    return int(os.environ['WORLD_SIZE'])


def rank_main(rank: int, world: int, path: str, data: str, labelled: str, regions: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f'{path}/ports{world}', world)

    def meet(
        name: str,
    ) -> None:  # at a port that is free now: one chosen before the other runs may be theirs by the time it is used
        if rank == 0:
            store.set(name, str(free_port()))
        os.environ['MASTER_PORT'] = store.get(name).decode()

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1')
    for name, (method, kind) in CASES.items():
        meet(name)
        runner = apis.train(small(method, data, kind), work_dir=f'{path}/{name}_{world}', launcher='pytorch')
        said = Path(runner.log_dir, f'{runner.timestamp}.log').read_text() if rank == 0 and kind == 'uneven' else ''
        torch.save(dict(runner.recorded, said=said), f'{path}/{name}_{world}_{rank}.pt')
    if world == 2:
        for method in METHODS:
            name = f'{method}_sharded'
            meet(name)
            runner = apis.train(small(method, data, 'sharded'), work_dir=f'{path}/{name}', launcher='pytorch')
            torch.save(runner.recorded, f'{path}/{name}_{world}_{rank}.pt')
        meet('recipe')
        runner = apis.train(small('odis', data, 'recipe'), work_dir=f'{path}/recipe', launcher='pytorch')
        torch.save(runner.recorded, f'{path}/recipe_{world}_{rank}.pt')
    if world > 1:  # sharded ranks go on from the first epoch of sharded ones, and more ranks that are not
        meet('resumed')
        runner = apis.train(
            small('odis', data, 'sharded' if world == 2 else 'plain'),
            work_dir=f'{path}/resumed_{world}',
            resume=f'{path}/odis_sharded/epoch_1.pth',
            launcher='pytorch',
        )
        torch.save(runner.recorded, f'{path}/resumed_{world}_{rank}.pt')
        meet('interrupted')
        change_ranks(world, path, data)
    torch.distributed.init_process_group('gloo', init_method=f'file://{path}/store{world}', rank=rank, world_size=world)
    frozen = FrozenBackbone(make_vit())
    features = image_features(frozen, LabelledImages(f'{labelled}/val', 32, most=17))
    knn = knn_images(frozen, *labelled_split(labelled, frozen, 32), ks=(1, 5))
    torch.save(
        dict(features=features, knn=knn, regions=measure_regions(make_vit(), Path(regions))),
        f'{path}/frozen_{world}_{rank}.pt',
    )
    torch.distributed.destroy_process_group()


def change_ranks(world: int, path: str, data: str) -> None:
    """Two ranks begin and are interrupted in the middle of the first epoch, four go on."""
    cfg, work_dir = small('odis', data, 'plain'), f'{path}/interrupted'
    if world == 4:
        runner = apis.train(cfg, work_dir=work_dir, launcher='pytorch', resume='auto')
        torch.save(runner.recorded, f'{path}/interrupted_{runner.rank}.pt')
        return
    cfg.custom_hooks.append(dict(type='Preempt'))
    try:
        apis.train(cfg, work_dir=work_dir, launcher='pytorch')
    except SystemExit as left:
        assert left.code == 75
    torch.distributed.destroy_process_group()


def launch(path: str, *args) -> None:
    """Forks all ranks of all world sizes, which share this process's imports."""
    Config.pretty_text = property(lambda self: '')
    for world in WORLDS:
        mp.start_processes(rank_main, args=(world, path, *args), nprocs=world, start_method='fork')


@pytest.fixture(scope='module')
def runs(tmp_path_factory, labelled_images, coco_folder) -> Path:
    path = tmp_path_factory.mktemp('runs')
    data = ensure_demo(path / 'demo', num_train=IMAGES, num_val=1, size=64)
    done = forked(partial(launch, str(path), data, str(labelled_images), str(coco_folder)), path)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def load(runs: Path, name: str, world: int) -> list:
    # objects of every kind, which this file's own processes wrote
    return [torch.load(runs / f'{name}_{world}_{rank}.pt', weights_only=False) for rank in range(world)]


@pytest.mark.parametrize('name', [name for name in CASES if 'uneven' not in name])
def test_two_and_four_ranks_equal_one(runs, name):
    (alone,) = load(runs, name, 1)
    accumulated = name.endswith('accumulated')
    assert len(alone['iterations']) == EPOCHS * (IMAGES // GLOBAL_BATCH) == len(alone['gradients']) * (1 + accumulated)
    for world in WORLDS[1:]:
        assert_same_run(alone, load(runs, name, world), f'{world} ranks')


def assert_same_run(alone: dict, ranks: list, what: str) -> None:
    assert all(len(rank['iterations']) == len(alone['iterations']) for rank in ranks)
    for one, *parts in zip(alone['iterations'], *(rank['iterations'] for rank in ranks)):
        assert sorted(sum((part['images'] for part in parts), [])) == sorted(one['images'])
        for key, value in one['losses'].items():
            assert sum(part['losses'][key] for part in parts) / len(ranks) == pytest.approx(value, abs=1e-5), key
    for rank in ranks:
        assert_same_state(rank['state'], alone['state'], what)
        for step, gradients in enumerate(alone['gradients']):
            assert gradients.keys() == rank['gradients'][step].keys()
            for key, value in gradients.items():
                torch.testing.assert_close(
                    rank['gradients'][step][key],
                    value,
                    atol=1e-5,
                    rtol=1e-4,
                    msg=lambda m: f'{what}, step {step}, {key}: {m}',
                )


def assert_same_state(state: dict, expected: dict, what: str) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f'{what}, {key}: {m}')


@pytest.mark.parametrize('method', METHODS)
def test_sharded_ranks_are_the_same_run(runs, method):
    """Weights, gradients, centers and the EMA in two parts; the files are those of a run in one piece."""
    (alone,) = load(runs, f'{method}_plain', 1)
    ranks = load(runs, f'{method}_sharded', 2)
    assert_same_run(alone, ranks, 'sharded')
    saved = load_local(str(runs / f'{method}_sharded/epoch_2.pth'))
    assert saved['state_dict'].keys() == alone['state'].keys()
    assert all(torch.equal(saved['state_dict'][key], value) for key, value in ranks[0]['state'].items())
    momentum = [entry['momentum_buffer'] for entry in saved['optimizer']['state'].values()]
    assert len(momentum) == len(alone['trained']) and all(type(value) is torch.Tensor for value in momentum)
    exported = torch.load(runs / f'{method}_sharded/epoch_2_backbone.pth', weights_only=True)
    assert exported['meta']['method'] == method.upper()
    assert {f'teacher.{key}' for key in exported['state_dict']} == {
        key for key in alone['state'] if key.startswith('teacher.backbone.')
    }
    assert_same_state(
        {f'teacher.{key}': value for key, value in exported['state_dict'].items()},
        {key: value for key, value in alone['state'].items() if key.startswith('teacher.backbone.')},
        'export',
    )


def test_the_sharded_recipe_runs(runs):
    """As it is shipped, but for its size: AdamW, bf16."""
    ranks = load(runs, 'recipe', 2)
    assert len(ranks[0]['gradients']) == 4 and all(torch.isfinite(value).all() for value in ranks[0]['state'].values())
    assert all(torch.equal(value, ranks[1]['state'][key]) for key, value in ranks[0]['state'].items())
    moved = max((value - ranks[0]['start'][key]).abs().max() for key, value in ranks[0]['state'].items())
    assert moved > 1e-5


@pytest.mark.parametrize('world', WORLDS[1:])
def test_a_sharded_run_is_resumed(runs, world):
    """By two sharded ranks, and by four that are not."""
    (alone,) = load(runs, 'odis_plain', 1)
    for rank in load(runs, 'resumed', world):
        assert len(rank['iterations']) == 2
        assert_same_state(rank['state'], alone['state'], f'resumed on {world}')


@pytest.mark.parametrize('method', METHODS)
def test_it_was_a_training(runs, method):
    """All student weights got a gradient in some step and moved, with the teacher and the centers: nothing above was 0
    = 0."""
    (alone,) = load(runs, f'{method}_plain', 1)
    moved = {key for key, value in alone['state'].items() if (value - alone['start'][key]).abs().max() > 4e-5}
    still = set(alone['state']) - moved
    assert {
        key for gradients in alone['gradients'] for key, value in gradients.items() if value.abs().max() > 0
    } == set(alone['trained'])
    assert not [key for key in still if not key.endswith(('ln1.bias', 'mean', 'std', 'rope.periods'))], still
    centers = [key for key in moved if 'center' in key]
    assert len(centers) == dict(odis=2, gtsa=0, alfm=1)[method]


def test_ranks_had_uneven_shares(runs):
    ranks = load(runs, 'odis_plain', 4)
    assert any(len({part['visible'] for part in parts}) > 1 for parts in zip(*(rank['iterations'] for rank in ranks)))
    assert any(len({part['masked'] for part in parts}) > 1 for parts in zip(*(rank['iterations'] for rank in ranks)))
    masked = [part['masked'] for rank in ranks for part in rank['iterations']]
    assert 0 in masked and max(masked) > 0, 'some rank had no masked patch at all'


def test_interrupted_on_two_ranks_and_resumed_on_four_is_one_run(runs):
    (alone,) = load(runs, 'odis_plain', 1)
    assert (runs / 'interrupted/epoch_0_iter_1.pth').is_file()
    # written by this file's own processes, as in load()
    ranks = [torch.load(runs / f'interrupted_{rank}.pt', weights_only=False) for rank in range(4)]
    for iteration, *parts in zip(alone['iterations'][1:], *(rank['iterations'] for rank in ranks), strict=True):
        assert sorted(sum((part['images'] for part in parts), [])) == sorted(iteration['images'])
    for rank in ranks:
        assert_same_state(rank['state'], alone['state'], 'interrupted')


@pytest.mark.parametrize('world', WORLDS)
def test_uneven_last_batches(runs, world):
    """22 images: four ranks take 20 of them, and say so; the last batch is smaller on all ranks alike, and none waits
    for another."""
    ranks = load(runs, 'odis_uneven', world)
    drawn = IMAGES // world * world
    for epoch in range(EPOCHS):
        share = slice(epoch * 3, (epoch + 1) * 3)
        images = sum((part['images'] for rank in ranks for part in rank['iterations'][share]), [])
        assert len(images) == len(set(images)) == drawn
        assert all(
            [len(part['images']) * world for part in rank['iterations'][share]] == [8, 8, drawn - 16] for rank in ranks
        )
    left = '; 2 left over that fill no batch of all ranks, others in each epoch' if drawn < IMAGES else ''
    assert f'an epoch: 3 iterations, {drawn} of {IMAGES} images, each once{left}\n' in ranks[0]['said']


@pytest.mark.parametrize('world', WORLDS[1:])
def test_frozen_measures_do_not_depend_on_ranks(runs, world):
    (alone,) = load(runs, 'frozen', 1)
    for rank in load(runs, 'frozen', world):
        assert rank['knn'] == alone['knn'] and rank['regions'] == pytest.approx(alone['regions'], abs=1e-3)
        # of 17 images: not as many on each
        torch.testing.assert_close(rank['features'][0], alone['features'][0], atol=1e-6, rtol=0)
        assert torch.equal(rank['features'][1], alone['features'][1])


# ---- peers that do not come
@pytest.fixture
def lonely(monkeypatch, tmp_path):
    """The variables of two ranks, of which only one is started."""
    for name in ('TORCHELASTIC_USE_AGENT_STORE', 'TORCHELASTIC_RESTART_COUNT', 'ODIS_MM_DEBUG'):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    for name, value in dict(
        RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port, ODIS_MM_PEER_TIMEOUT=0.4
    ).items():
        monkeypatch.setenv(name, str(value))
    return port


def test_a_missing_rank_is_named(lonely, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.train_main(['odis_demo', '--launcher', 'pytorch', '--work-dir', str(tmp_path)])
    assert stop.value.code == 2 and not torch.distributed.is_initialized()
    said = capsys.readouterr().err.strip().splitlines()
    assert (
        f'error (rank 0): 1 of 2 ranks (1) did not join the master 127.0.0.1:{lonely} within 0.4 s. Usual causes: '
        in said[-1]
    )
    assert f'waiting for 1 of 2 ranks (1) to join the master 127.0.0.1:{lonely}' in said[0]
    other = free_port()
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('MASTER_PORT', str(other))
    with pytest.raises(
        MissingPeersError, match=f'rank 1 of 2 .* did not reach the master 127.0.0.1:{other} within 0.4 s'
    ):
        await_peers()
    monkeypatch.setenv('ODIS_MM_PEER_TIMEOUT', 'soon')
    with pytest.raises(ValueError, match="ODIS_MM_PEER_TIMEOUT='soon'"):
        await_peers()


def test_a_taken_port_is_named(lonely, monkeypatch):
    with socket.socket() as other:
        other.bind(('127.0.0.1', lonely))
        other.listen()
        with pytest.raises(MissingPeersError, match=f'cannot listen at the master.s address 127.0.0.1:{lonely}'):
            await_peers()


def test_a_missing_node_is_named(lonely, tmp_path):
    """torchrun waits by itself, before any of our ranks is there."""
    env = {**os.environ, 'NNODES': '2', 'PORT': str(lonely), 'PYTHON': sys.executable, 'ODIS_MM_PEER_TIMEOUT': '1'}
    script = ROOT / 'tools/dist_train.sh'
    done = subprocess.run(
        ['bash', str(script), 'odis_demo', '1'], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'error: not all 2 nodes joined the master 127.0.0.1:{lonely} within 1 s'), done.stderr[
        -2000:
    ]


@pytest.mark.parametrize('ranks', ['0', '--work-dir', 'two'])
def test_a_number_of_ranks_that_is_none_is_told(ranks, tmp_path):
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), 'odis_demo', ranks], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: the number of ranks') and f"not '{ranks}'" in done.stderr
