"""Models, batches, runners and command lines in small, shared by tests of several modules."""

import atexit
import base64
import copy
import functools
import gc
import json
import os
import os.path as osp
import pickle
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import mmengine._strategy.base  # mmengine gives it no public name
import mmengine.config.utils
import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmpretrain.registry import MODELS
from PIL import Image
from yapf.yapflib import yapf_api

import odis_mm
from odis_mm.analysis.cost import total_loss
from odis_mm.cli import main
from odis_mm.config import load_config
from odis_mm.datasets.transforms import mask_positions
from odis_mm.engine.hooks import SafeCheckpointHook
from odis_mm.evaluation import FrozenBackbone, region_proxy, region_split
from odis_mm.models import ObjectViT
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows import stages

ROOT = Path(__file__).resolve().parents[1]
ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)


K = 24


def make_vit(type_='ObjectViT', **kwargs):
    torch.manual_seed(0)
    vit = MODELS.build({**dict(type=type_, arch=ARCH, img_size=32, patch_size=8, out_type='raw'), **kwargs})
    vit.init_weights()
    vit.eval()  # returns None in mmpretrain
    return vit


def make_odis(**kwargs):
    cfg = dict(
        type='ODIS',
        backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0),
        neck=dict(type='ProjectionNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
        head=dict(type='DistillationHead', num_prototypes=K),
    )
    for key, value in kwargs.items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) and key in cfg else value
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def make_batch(batch=3, num_local=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    mim = torch.rand(2 * batch, 16, generator=g) < 0.4
    mim[0] = False  # an image without masked patches
    return dict(
        inputs=[
            torch.randint(0, 256, (2 * batch, 3, 32, 32), generator=g, dtype=torch.uint8),
            torch.randint(0, 256, (num_local * batch, 3, 16, 16), generator=g, dtype=torch.uint8),
        ],
        data_samples=dict(
            object_mask=[
                torch.rand(2 * batch, 16, generator=g) < 0.5,
                torch.ones(num_local * batch, 4, dtype=torch.bool),
            ],
            object_visible=torch.rand(batch, 2 + num_local, generator=g) < 0.8,
            mim_mask=mim,
            **mask_positions(mim),
        ),
    )


def losses_of(model, data, iteration=0):
    model.set_progress(iteration, 100, 10)
    return model(**model.data_preprocessor(copy.deepcopy(data), True), mode='loss')


def noisy_vit(**kwargs):
    torch.manual_seed(0)
    model = ObjectViT(ARCH, img_size=32, patch_size=8, **kwargs)
    model.init_weights()
    for parameter in model.parameters():  # no zero may hide what is left out
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def random_images(n=3, size=32, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_masks(n=3, patches=16):
    return torch.rand(n, patches, generator=torch.Generator().manual_seed(2)) < 0.4


def losses_and_gradients_of(model, seed=3):
    data = model.data_preprocessor(make_batch(batch=3), True)
    model.zero_grad()
    torch.manual_seed(seed)
    losses = model.compute_losses(data['inputs'], data['data_samples'])
    total_loss(losses).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


ODIS_CONFIG = dict(  # of make_odis
    type='ODIS',
    backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8),
    neck=dict(type='ProjectionNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
    head=dict(type='DistillationHead', num_prototypes=K),
)


class ViewBatches(torch.utils.data.Dataset):
    """Collated-batch content per index, so that a plain loader of batch size 1 feeds the model; NaN in a pixel of
    some."""

    def __init__(self, nan_at=()):
        self.nan_at = nan_at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        data = make_batch(batch=2, seed=index)
        data['data_samples']['img_id'] = torch.tensor([7, 8])
        return with_nan(data) if index in self.nan_at else data

    def paths_of(self, ids):
        return [f'img/{i}.jpg' for i in ids]


def with_nan(data):
    data['inputs'][0] = data['inputs'][0].float()
    data['inputs'][0][0, 0, 0, 0] = float('nan')
    return data


def odis_runner(
    tmp_path,
    nan_at=(),
    epochs=2,
    accumulate=1,
    lr=0.01,
    optimizer='SGD',
    hooks=(),
    nonfinite=None,
    model=None,
    **kwargs,
):
    init_default_scope('mmpretrain')
    model = model or make_odis(momentum=dict(start=0.5, end=1.0))
    loader = torch.utils.data.DataLoader(ViewBatches(nan_at), batch_size=1, collate_fn=lambda items: items[0])
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='SafeOptimWrapper',
            optimizer=dict(type=optimizer, lr=lr, weight_decay=0.04),
            accumulative_counts=accumulate,
            constructor='SelfSupOptimWrapperConstructor',
        ),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[
            dict(type='NonFiniteLossHook', **(nonfinite or {})),
            dict(type='ExportTeacherHook'),
            dict(type='SelfSupScheduleHook', weight_decay_end=0.4, freeze_prototypes_epochs=1),
            *hooks,
        ],
        experiment_name=f'{osp.basename(tmp_path)}_{epochs}_{accumulate}',
        default_scope='mmpretrain',
        **kwargs,
    )
    return runner


def make_sample(height=120, width=160, num_objects=3, seed=0, masks=True) -> dict:
    """A dataset item after loading: a textured RGB image with ellipses on it.

    Returns:
        dict: ``img`` uint8 [H, W, 3], ``height``, ``width``, ``bboxes`` float32 [n, 4] xyxy in pixels, ``masks`` list
        of n COCO polygon lists (or None), ``labels`` int64 [n], ``img_id``, ``img_path``, ``rng`` seeded by ``seed``.
    """
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    waves = [np.sin(xs / rng.uniform(3, 20) + rng.uniform(0, 6)) * np.cos(ys / rng.uniform(3, 20)) for _ in range(3)]
    img = (110 + 60 * np.stack(waves, -1)).astype(np.uint8)
    boxes, polygons = [], []
    for _ in range(num_objects):
        rx, ry = rng.uniform(0.06, 0.25, 2) * (width, height)
        cx, cy = rng.uniform(rx, width - rx), rng.uniform(ry, height - ry)
        img[((xs + 0.5 - cx) / rx) ** 2 + ((ys + 0.5 - cy) / ry) ** 2 <= 1] = rng.integers(0, 256, 3)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        polygons.append([np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], 1).reshape(-1).tolist()])
        boxes.append([cx - rx, cy - ry, cx + rx, cy + ry])
    return dict(
        img=img,
        height=height,
        width=width,
        img_id=seed,
        img_path=f'synthetic_{seed}.png',
        bboxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        masks=polygons if masks else None,
        labels=np.zeros(num_objects, np.int64),
        epoch=0,
        sample_idx=seed,
        rng=np.random.default_rng((seed, 0, 1)),
    )


BACKBONE = dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8)


def measure_regions(backbone, coco, k=3):
    frozen = FrozenBackbone(backbone)
    split = region_split(
        frozen,
        str(coco),
        [f'annotations/instances_{part}2017.json' for part in ('train', 'val')],
        ('train2017', 'val2017'),
        (32,),
    )
    return region_proxy(frozen, *split, k)


GTSA_ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32)


def make_gtsa(**head):
    torch.manual_seed(1)
    model = MODELS.build(
        dict(
            type='GTSA',
            momentum=dict(start=0.5, end=1.0),
            backbone=dict(type='ObjectViT', arch=GTSA_ARCH, img_size=40, patch_size=8, drop_path_rate=0.0),
            neck=dict(type='ConvNeck', in_channels=24, hidden_channels=24, out_channels=32),
            head=dict(
                type='GTSAHead',
                in_channels=24,
                rotation_channels=(20, 18, 16),
                crop_cells=(4, 2),
                num_matches=(12, 5),
                predictor=dict(
                    type='ConvNeck', in_channels=32, hidden_channels=28, out_channels=32, num_blocks=1, residual=False
                ),
                correspondence_epoch=0,
                **head,
            ),
        )
    )
    model.init_weights()
    return model


def arrow(size=64):
    """A white arrow that points to the right, on black: a shaft along the middle row, a head at the right edge."""
    picture = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    picture[half - 2 : half + 2, size // 8 : -size // 8] = 255
    for i in range(size // 4):
        picture[half - i : half + i, size - size // 8 - i - 1] = 255
    return picture


TINY_ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)


def stock_vit(arch=TINY_ARCH, img_size=32, patch_size=8, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = MODELS.build(
        dict(type='VisionTransformer', arch=arch, img_size=img_size, patch_size=patch_size, out_type='raw', **kwargs)
    )
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at a special value, so that a swap would show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.eval()  # mmpretrain's returns nothing
    return model


class Foreign:
    """Stands for any class whose restoring runs code of its own."""

    def __reduce__(self):
        return os.system, ('touch should_not_exist',)


@MMENGINE_MODELS.register_module(name='ToyOfTests', force=True)
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


def toy_runner(work_dir, **changes) -> Runner:
    dataset = [dict(inputs=torch.ones(2)) for _ in range(4)]
    return Runner(
        **{
            **dict(
                model=Toy(),
                work_dir=str(work_dir),
                train_dataloader=dict(batch_size=2, dataset=dataset, sampler=dict(type=DefaultSampler, shuffle=False)),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                train_cfg=dict(by_epoch=True, max_epochs=4),
                log_level='ERROR',
                default_hooks=dict(checkpoint=dict(type=SafeCheckpointHook, max_keep_ckpts=1, interval=1)),
                experiment_name=f'toy_{id(changes)}',
            ),
            **changes,
        }
    )


DEMO_RECIPES = ('odis_demo', 'ibot_demo', 'gtsa_demo', 'alfm_demo')
FOUR_STEPS = [  # of any of them, on sixteen images
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=1',
    'param_scheduler=[]',
    'model.backbone.arch.num_layers=2',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=9',
    'default_hooks.checkpoint.save_last=False',
    'default_hooks.views=None',
    'log_processor.window_size=1',
    'log_level=WARNING',
]


TINY_RUN = [  # of odis_demo: a ViT of two blocks on 32 pixel views
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=2',
    'param_scheduler.0.end=1',
    'param_scheduler.1.begin=1',
    'model.backbone.arch.num_layers=2',
    'model.neck.num_prototypes=48',
    'model.head.num_prototypes=48',
    'default_hooks.logger.interval=1',
    'default_hooks.views=None',  # pictures take longer than this training
]


SMALL_DETECTOR = {  # options of a detector for small data, whose head would take most of the time of a tiny training
    **{f'{part}_dataloader.num_workers': 0 for part in ('train', 'val', 'test')},
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.test_cfg.rcnn.max_per_img': 10,
}


def environment(demo: str = '', **extra: str) -> dict:
    """Return the environment of a subprocess: this checkout, this interpreter, one thread."""
    env = {k: v for k, v in os.environ.items() if k != 'ODIS_MM_DEBUG'}
    return {
        **env,
        'ODIS_DEMO_ROOT': demo,
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
        **extra,
    }


def run_command_line(command, cwd, env) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def install_wheel(folder: Path) -> Path:
    """Build a wheel from copies of the files that git knows, install it below ``folder``, and return that place."""
    source, target = folder / 'source', folder / 'site'
    tracked = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout')
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(('docs/', 'tests/')):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run_command_line([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, '.'], source, environment())
    run_command_line(
        [*pip, 'install', '--no-deps', '--target', target, next(folder.glob('*.whl'))], folder, environment()
    )
    shutil.rmtree(source)
    return target


SERVER = """
import base64, os, pickle, sys
answers = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)  # what imports say goes elsewhere
import helpers
helpers.import_everything()
for line in sys.stdin:  # one process per line
    child = os.fork()
    if not child:
        helpers.call(**pickle.loads(base64.b64decode(line)))
        break
    print(child, file=answers)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
"""


def import_everything() -> None:
    """Import what a command may need, in an interpreter that others are forked from; it never trains, since torch
    forbids a fork after that on GPUs."""
    others = [f'mmpretrain.{room}' for room in ('datasets', 'engine', 'evaluation', 'models', 'visualization')]
    others += [f'mmdet.{room}' for room in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization')]
    for name in (*others, *(module.name for module in pkgutil.walk_packages(odis_mm.__path__, 'odis_mm.'))):
        with suppress(ImportError):  # of what is not installed
            import_module(name)
    for module in (mmengine.runner.runner, mmengine._strategy.base):
        module.collect_env = lambda: {}  # seconds per run, and nothing but a report
    with shortcuts(), suppress(ImportError, ConfigError):
        load_config('faster-rcnn_small')  # reads the metafiles
    gc.freeze()  # else each process's first collection would copy all that they share


def call(function: bytes, path: list, cwd: str, env: dict, out: str, err: str) -> None:
    """Be, in a forked process, a program that calls a function."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, name, mode in ((0, os.devnull, 'rb'), (1, out, 'ab'), (2, err, 'ab')):
        with open(name, mode) as file:
            os.dup2(file.fileno(), number)
    sys.path[:] = path
    with shortcuts():
        pickle.loads(function)()


read_metafile = functools.cache(mmengine.config.utils.load)
make_figure = Visualizer._initialize_fig


@functools.cache
def figure(**options) -> tuple:
    return make_figure(None, options)


@contextmanager
def shortcuts():
    """Leave out of mmengine what takes as long as a tiny training and that no test looks at: yapf on the texts of
    configs, up to six times per run; a hundred metafiles, read for each file of mmdet that a config derives from; each
    visualizer's own empty figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', lambda text, **_: (text, True))
        patch.setattr(mmengine.config.utils, 'load', read_metafile)
        patch.setattr(Visualizer, '_initialize_fig', lambda self, options: figure(**options))
        yield


@functools.cache
def server(package: str) -> subprocess.Popen:
    """Return an interpreter that has imported everything, ``odis_mm`` from a folder, and that processes are forked
    from."""
    started = subprocess.Popen(
        [sys.executable, '-c', SERVER],
        cwd=package,  # where Python looks first
        env=environment(PYTHONPATH=f'{package}{os.pathsep}{ROOT / "tests"}'),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(started.stdin.close)
    return started


class Forked:
    """A call of a function, or a command line, as a process that leads a group: as in one of its own, but that imports
    take no time.

    Args:
        function: At the top level of its module, or a ``functools.partial`` of it.
        folder: Where the process writes ``out`` and ``err``.
        cwd: Its working directory; None: ``folder``.
        env: Its environment; None: :func:`environment`.
        package: Where ``odis_mm`` lies, if not in this checkout.
    """

    def __init__(self, function, folder, cwd=None, env=None, package=ROOT):
        self.out, self.err = Path(folder, 'out'), Path(folder, 'err')
        path = [str(package), *(entry for entry in sys.path if Path(entry) != ROOT)]
        env = environment() if env is None else env
        task = dict(path=path, cwd=str(cwd or folder), env=env, out=str(self.out), err=str(self.err))
        line = base64.b64encode(pickle.dumps(dict(task, function=pickle.dumps(function))))
        self.server = server(str(package))
        self.out.write_text('')
        self.err.write_text('')
        self.server.stdin.write(line.decode() + '\n')
        self.server.stdin.flush()
        self.pid = int(self.server.stdout.readline())

    def wait(self, timeout: float = 900) -> int:
        """Return the exit code; a process that hangs is killed, and its code tells."""
        hangs = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        hangs.start()
        code = int(self.server.stdout.readline())
        hangs.cancel()
        return code


def forked(function, folder, **where) -> subprocess.CompletedProcess:
    """Return exit code and output of a call; see :class:`Forked`."""
    process = Forked(function, folder, **where)
    code = process.wait()
    return subprocess.CompletedProcess(function, code, process.out.read_text(), process.err.read_text())


def forked_in_group(function, folder, near: Path, number=None) -> int:
    """Return the exit code of a call whose process group gets a signal once it has made the file ``near``; no process
    of the group may be left."""
    process = Forked(function, folder)
    with suppress(ProcessLookupError):  # it ended without
        while number and not near.exists():
            os.kill(process.pid, 0)
            time.sleep(0.02)
        if number:
            near.unlink()
            os.killpg(process.pid, number)
    code = process.wait()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return code
    raise AssertionError('a worker is left')


def fork_commands() -> None:
    """Have a comparison in this process fork its commands from it."""
    popen = subprocess.Popen

    def start(words, *, stdout, env, **others):
        if 'odis_mm' not in words:
            return popen(words, stdout=stdout, env=env, **others)
        at = words.index('odis_mm')
        assert words[at - 2 : at] == [sys.executable, '-m']
        pid = os.fork()
        if pid:
            return SimpleNamespace(pid=pid, returncode=None)
        code = 70
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.update(env)
            main(words[at + 1 :])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    stages.subprocess = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT, DEVNULL=subprocess.DEVNULL)


def write_noise_coco(root, splits=(('train', 24), ('val', 16)), seed=0):
    """Noise with rectangles on it, whose boxes are annotated."""
    rng = np.random.default_rng(seed)
    (root / 'images').mkdir(parents=True)
    (root / 'annotations').mkdir()
    number = 0
    for split, count in splits:
        content = dict(images=[], annotations=[], categories=[dict(id=1, name='box'), dict(id=2, name='unused')])
        for _ in range(count):
            number += 1
            pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
            Image.fromarray(pixels).save(root / 'images' / f'{number}.png')
            content['images'].append(dict(id=number, file_name=f'{number}.png', width=96, height=72))
            for _ in range(3):
                x, y, w, h = *rng.uniform(0, 40, 2), *rng.uniform(15, 30, 2)
                box = dict(id=len(content['annotations']) + 1, image_id=number, category_id=1, bbox=[x, y, w, h])
                content['annotations'].append(dict(box, area=w * h, iscrowd=0))
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return root
