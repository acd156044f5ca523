"""Training and testing by a config: what the command line calls, and what a script or a test can call as well."""

import copy
import datetime
import itertools
import logging
import os
import os.path as osp
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed

from .config import (
    beyond_the_end,
    check_classifier,
    check_init,
    check_schedule,
    explain_build_error,
    fit_schedule,
    follow_channels,
    in_iterations,
    load_config,
)
from .datasets import EpochSampler, number_draws
from .engine.hooks import BadImageHook, LoadingHook, PreemptionHook
from .engine.log import QuietRunner
from .engine.resume import damage, find_checkpoint
from .models.linear import bf16_slowdown
from .recipes.starting import follow_named, named_start, start_from
from .transfer.mmengine_loading import closed_to_code
from .utils.environment import MACHINE, check_operators, hardware
from .utils.errors import ConfigError, UserError
from .utils.noise import import_quietly, quiet_prints, quiet_warnings
from .utils.origin import resumed_start
from .utils.paths import holds_run
from .utils.peers import agent_keeps_store, await_peers
from .utils.words import count

__all__ = ['build_runner', 'latest_checkpoint', 'scale_lr', 'test', 'train', 'use_resume']

AMP_WRAPPERS = dict(
    bf16=dict(type='mmpretrain.AutocastOptimWrapper'),
    fp16=dict(type='mmpretrain.SafeAmpOptimWrapper', dtype='float16', loss_scale='dynamic'),
)
SLOW_BF16 = 1.2  # times as long as float32: below, its smaller memory may be worth it
RUNNER_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}  # mmengine's names
LOCAL_RANKS = dict(slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')  # torchrun's is LOCAL_RANK
_RUNS = itertools.count()


def train(
    config: Union[str, Path, Config],
    *,
    work_dir: Optional[str] = None,
    resume: Optional[str] = None,
    init: Optional[str] = None,
    amp: Union[str, bool, None] = None,
    options: Optional[Dict[str, Any]] = None,
    launcher: str = 'none',
) -> Runner:
    """Train what a config describes: pretraining and detectors alike.

    Args:
        config: Path, name of a shipped recipe, or a config.
        work_dir: Logs, checkpoints and the resolved config go here; default: ``work_dirs/<name of the config>``.
        resume: What to continue from: a checkpoint, a folder (the newest in it), 'latest' (the newest in work_dir), or
            'auto': that too, if there is one, else from the beginning.
        init: A file of any known layout that the backbone starts from (:func:`start_from`); None: what ``init_cfg`` of
            the config names.
        amp: 'bf16' (not for detectors, whose boxes it would round to eight bits), 'fp16' (GPU), or True, the first of
            them that suits the model: mixed precision in place of the config's choice.
        options: See :func:`load_config`.
        launcher: 'none' (one process), 'pytorch' (torchrun), 'slurm' or 'mpi'.

    Returns:
        The runner after training.

    Raises:
        ConfigError: anything wrong with config, options or work_dir, before the first iteration; an ``init`` that is
            not what the resumed run started from.
    """
    cfg = config if isinstance(config, Config) else load_config(config, options)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(key):
            raise ConfigError(f'{cfg.filename} has no {key}, so it cannot be trained.')
    _prepare(cfg, work_dir, launcher)
    scaled = fit_schedule(cfg)
    check_schedule(cfg)
    follow_channels(cfg)
    number_draws(cfg.train_dataloader, by_epoch=str((cfg.get('train_cfg') or {}).get('type')) != 'IterBasedTrainLoop')
    detector = cfg.get('default_scope') == 'mmdet'
    if amp:
        amp = ('fp16' if detector else 'bf16') if amp is True else amp
        _use_amp(cfg, amp)
    _check_amp(cfg.optim_wrapper, detector)
    resuming = use_resume(cfg, resume)
    if init and cfg.get('resume'):
        resumed_start(Path(cfg.load_from).parent / Path(cfg.filename or '').name, init)
    init = init or named_start(cfg)
    lines = start_from(cfg, init) if init else []
    if not init and (cfg.get('resume') or not cfg.get('load_from')):
        lines = follow_named(cfg)
    notes = [(logging.INFO, line) for line in lines]
    check_init(cfg)
    notes += [(logging.WARNING, line) for line in check_classifier(cfg)]
    notes += resuming + _check_detection(cfg, ('train', 'val'))
    with _session(cfg):
        runner = build_runner(cfg)
        runner.logger.info(_ranks_line(runner))
        runner.logger.info(f'the whole log, with environment, config and hooks: {runner.log_dir}')
        runner.logger.info(f'{MACHINE}{hardware()}')
        for level, note in [*((logging.INFO, line) for line in scaled), *notes]:
            runner.logger.log(level, note)
        runner.logger.info(scale_lr(runner))
        if amp:
            runner.logger.info(f'mixed precision: autocast in {amp}, {cfg.optim_wrapper.type}')
        bf16 = get_device() == 'cpu' and str(cfg.optim_wrapper.get('type')).endswith('AutocastOptimWrapper')
        if bf16 and (slowdown := bf16_slowdown()) > SLOW_BF16:
            runner.logger.warning(
                f'mixed precision: bf16 products take {slowdown:.1f} times as long as float32 ones on this processor: '
                'training is faster without --amp'
            )
        with _explained(cfg):
            _check_length(runner)
            for line in beyond_the_end(cfg, runner.max_iters / len(runner.train_dataloader)):
                runner.logger.warning(line)
            _use_whole_iterations(runner)
            if isinstance(runner.train_dataloader.sampler, EpochSampler):
                runner.logger.info(_epoch_line(runner))
            try:
                runner.train()
            finally:  # else Ctrl-C in a notebook would ask a training that failed for a checkpoint
                for hook in runner.hooks:
                    if isinstance(hook, PreemptionHook):
                        hook.put_back()
    return runner


def test(
    config: Union[str, Path, Config],
    checkpoint: str,
    *,
    work_dir: Optional[str] = None,
    options: Optional[Dict[str, Any]] = None,
    launcher: str = 'none',
) -> dict:
    """Evaluate a checkpoint by the config's ``test_dataloader`` and ``test_evaluator``; return the metrics.

    The arguments are those of :func:`train`.
    """
    cfg = config if isinstance(config, Config) else load_config(config, options)
    if not cfg.get('test_dataloader'):
        raise ConfigError(
            f'{cfg.filename} has no test_dataloader: a pretraining run is judged by its losses and by the '
            'detectors that it feeds.'
        )
    if not osp.isfile(checkpoint):
        raise ConfigError(f'no checkpoint {checkpoint!r}.')
    _prepare(cfg, work_dir, launcher)
    cfg.load_from, cfg.resume = checkpoint, False
    notes = [(logging.INFO, line) for line in follow_named(cfg)] + _check_detection(cfg, ('test',))
    with _session(cfg):
        runner = build_runner(cfg, training=False)
        runner.logger.info(_ranks_line(runner))
        for level, note in notes:
            runner.logger.log(level, note)
        with _explained(cfg):
            return runner.test()


def scale_lr(runner: Runner) -> str:
    """Scale the peak lr to the global batch, accumulation included, and return the sentence for the log.

    mmengine's own ``auto_scale_lr`` ignores gradient accumulation. The config of the runner, and with it the copy in
    work_dir, keeps the unscaled lr, so that a run started from that copy is scaled once.

    Args:
        runner: Before ``train()``; its ``auto_scale_lr`` is dict(enable, base_batch_size).

    Returns:
        The line for the log.
    """
    owner, key = (
        (runner, 'auto_scale_lr') if hasattr(runner, 'auto_scale_lr') else (runner.strategy, '_auto_scale_lr')
    )  # FlexibleRunner
    rule, wrapper = getattr(owner, key) or {}, runner.optim_wrapper
    lr = wrapper['optimizer'].get('lr')
    if not rule.get('enable') or lr is None:
        return f'lr = {lr:g}, as the config says: auto_scale_lr is off' if lr else 'lr: the optimizer has none'
    ranks, batch = runner.world_size, runner._train_dataloader['batch_size']
    accumulation = wrapper.get('accumulative_counts', 1)
    base = rule['base_batch_size']
    scaled = lr * ranks * batch * accumulation / base
    wrapper['optimizer']['lr'] = scaled
    setattr(owner, key, None)
    return (
        f'lr = {lr:g} x ({count(ranks, "rank")} x {count(batch, "image")} x {accumulation} accumulated)/{base} = '
        f'{scaled:g} at a global batch of {ranks * batch * accumulation}'
    )


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """Return the checkpoint of a folder to resume from, None if it holds none:
    :func:`~odis_mm.engine.resume.find_checkpoint`."""
    return find_checkpoint(work_dir)[0]


def _prepare(cfg: Config, work_dir: Optional[str], launcher: str) -> None:
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(cfg.filename or 'run').stem)
    cfg.launcher = launcher
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir) as f:
            f.write(b'x')
    except OSError as error:
        raise ConfigError(
            f'cannot write to the work dir {cfg.work_dir!r} ({error.strerror}): choose another one with --work-dir.'
        ) from error
    for name in [n for n, hook in (cfg.get('default_hooks') or {}).items() if hook is None and n not in RUNNER_HOOKS]:
        del cfg.default_hooks[name]  # mmengine removes only its own by None
    import_quietly('mmpretrain.datasets')
    if cfg.get('default_scope') == 'mmdet' and find_spec('mmdet') is not None:
        import_quietly('mmdet.datasets', 'mmdet.evaluation', 'mmdet.models')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if loader and not loader.get('num_workers'):  # torch refuses settings of workers that do not exist
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
        if loader and not torch.cuda.is_available():  # nothing to pin for
            loader.pop('pin_memory', None)


def _check_detection(cfg: Config, parts: Sequence[str]) -> List[Tuple[int, str]]:
    """Looks at a detector's annotations before mmdet does; returns levels and lines for the log."""
    if cfg.get('default_scope') != 'mmdet' or find_spec('mmdet') is None:
        return []
    from .detection.checks import check_detection_data

    check_operators()
    return [(logging.INFO, line) for line in check_detection_data(cfg, parts)]


def _use_amp(cfg: Config, amp: str) -> None:
    if amp not in AMP_WRAPPERS:
        raise ConfigError(f'--amp {amp}: use one of {", ".join(AMP_WRAPPERS)}.')
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.update(AMP_WRAPPERS[amp])


def _check_amp(wrapper: dict, detector: bool) -> None:
    name = str(wrapper.get('type'))
    bf16 = name.endswith('AutocastOptimWrapper') or str(wrapper.get('dtype')).endswith('bfloat16')
    if get_device() == 'cpu' and (name.endswith('AmpOptimWrapper') or (detector and bf16)):
        remedy = 'a detector trains in float32 on a CPU, where NMS takes nothing else' if detector else 'use --amp bf16'
        raise ConfigError(f'optim_wrapper.type={name} (mixed precision) needs a GPU; {remedy}.')
    if detector and bf16:
        raise ConfigError(
            f"optim_wrapper.type={name}: bf16 rounds a detector's boxes to eight bits, and mmcv's operators do not "
            'take it; use --amp fp16.'
        )


def use_resume(cfg: Config, resume: Optional[str]) -> List[Tuple[int, str]]:
    """Set what to resume from; return levels and lines for the log, which does not exist yet."""
    if resume is None and not cfg.get('resume'):
        if not holds_run(Path(cfg.work_dir)):
            return []
        text = f'{cfg.work_dir} holds checkpoints of another run, and those of the same name are replaced'
        return [(logging.WARNING, f'{text}: --work-dir names another folder, --resume continues that run')]
    path = cfg.get('load_from') if resume is None else None if resume in ('auto', 'latest') else resume
    folder = cfg.work_dir
    if path and osp.isdir(path):
        path, folder, resume = None, path, 'latest'
    if path and not osp.isfile(path):
        raise ConfigError(f'--resume: no checkpoint {path!r}.')
    if path and (wrong := damage(path)):
        raise ConfigError(
            f'--resume: checkpoint {path!r} is damaged: {wrong}; name another one, or say --resume alone to continue '
            'from the newest whole one of the work dir.'
        )
    path, warnings = (path, []) if path else find_checkpoint(folder)
    if path is None and resume == 'latest':
        raise ConfigError(
            f'--resume: there is no checkpoint in {folder}; name the file or folder, or say --resume auto to begin at '
            'the beginning where there is none.'
        )
    cfg.resume = path is not None
    if path is None:
        return [(logging.INFO, f'--resume: there is no checkpoint in {folder}, so training starts at the beginning')]
    cfg.load_from = path
    return [(logging.WARNING, text) for text in warnings] + [(logging.INFO, f'--resume: continuing from {path}')]


@contextmanager
def _session(cfg: Config) -> Iterator[None]:
    """Process group of this run, whose checkpoints are read as data and never run as code."""
    ours = cfg.launcher != 'none' and not distributed.is_initialized()
    if ours:
        _init_distributed(cfg)
    with closed_to_code(), quiet_prints(), quiet_warnings():
        yield
    if ours:  # after an error the process ends, and waiting for the others could last until the timeout
        distributed.barrier()  # rank 0 may still be writing; a gloo group that goes while it does aborts its process
        distributed.destroy_process_group()


def _init_distributed(cfg: Config) -> None:
    """mmengine assumes a GPU per process: on CPUs, gloo is started here and DDP gets no device id."""
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch reads its rank from torchrun: start with `bash tools/dist_train.sh CONFIG RANKS`, '
            'or leave --launcher out.'
        )
    if torch.cuda.is_available():
        local = int(os.environ.get(LOCAL_RANKS.get(cfg.launcher, 'LOCAL_RANK'), 0))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f'local rank {local} has no GPU of its own: this machine shows {torch.cuda.device_count()}; start '
                'no more ranks than GPUs.'
            )
        if cfg.launcher == 'mpi':
            os.environ['LOCAL_RANK'] = str(local)  # mmengine's DDP reads it, and mpirun sets another
        if cfg.launcher == 'pytorch' and agent_keeps_store():
            await_peers()
        return  # the Runner starts env_cfg.dist_cfg.backend
    if cfg.launcher != 'pytorch':
        raise ConfigError(
            f'--launcher {cfg.launcher} needs GPUs; on CPUs use tools/dist_train.sh or tools/slurm_train.sh, '
            'which start torchrun.'
        )
    timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout', 1800)
    distributed.init_process_group(
        'gloo',
        store=await_peers(),
        rank=int(os.environ['RANK']),
        world_size=int(os.environ['WORLD_SIZE']),
        timeout=datetime.timedelta(seconds=timeout),
    )
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **cfg.get('model_wrapper_cfg', {}),
        'device_ids': None,
    }


def build_runner(cfg: Config, training: bool = True) -> Runner:
    """Build the runner of a config.

    mmengine finds a run's logger and message hub by the run's name and the second it began. Two runs of one process
    within a second would share a log file and its history: each run after the first has a number in its name. The
    visualizer is found by a name that mmdet's configs give to all: a second detector would write its scalars and
    pictures to the work dir of the first.

    Args:
        cfg: Left as it is.
        training: The run trains; else it evaluates.

    Raises:
        ConfigError: a part of the config cannot be built.
    """
    cfg, number = copy.deepcopy(cfg), next(_RUNS)
    if number:
        cfg.experiment_name = f'{cfg.get("experiment_name") or Path(cfg.filename or "run").stem}_{number}'
    if isinstance(cfg.get('visualizer'), dict):
        cfg.visualizer.pop('name', None)  # mmengine takes the run's
    with _explained(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else QuietRunner.from_cfg(cfg)
    if training and not any(isinstance(hook, BadImageHook) for hook in runner.hooks):  # of a config of mmdet's
        runner.register_hook(BadImageHook())
    runner.register_hook(LoadingHook(training=training, allow=cfg.get('load_from_allow') or ()))
    return runner


def _check_length(runner: Runner) -> None:
    if not len(runner.train_dataloader):
        batch = runner._train_dataloader['batch_size']
        raise ConfigError(
            f'the training set has {count(len(runner.train_dataloader.dataset), "image")} over '
            f'{count(runner.world_size, "rank")}, fewer than one batch of {batch} each: lower '
            'train_dataloader.batch_size, or set train_dataloader.drop_last=False.'
        )


def _use_whole_iterations(runner: Runner) -> None:
    """Schedules of parts of an epoch, in iterations: mmengine's step at whole epochs."""
    parts = runner.param_schedulers
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        runner.param_schedulers = in_iterations(parts, len(runner.train_dataloader))
        if len(runner.param_schedulers) < len(parts):
            runner.logger.info('no warm-up: it would have less than two iterations')


def _epoch_line(runner: Runner) -> str:
    loader, ranks = runner.train_dataloader, runner.world_size
    images, drawn = len(loader.dataset), len(loader.sampler) * ranks
    if loader.drop_last:
        drawn = len(loader) * loader.batch_size * ranks
    left = (
        f'; {images - drawn} left over that fill no batch of all ranks, others in each epoch' if drawn < images else ''
    )
    return f'an epoch: {count(len(loader), "iteration")}, {drawn} of {count(images, "image")}, each once{left}'


@contextmanager
def _explained(cfg: Config) -> Iterator[None]:
    try:
        yield
    except (TypeError, KeyError, ValueError) as error:
        sentence = None if isinstance(error, UserError) else explain_build_error(error, cfg)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def _ranks_line(runner: Runner) -> str:
    rank, world = get_dist_info()
    threads = torch.get_num_threads()
    device = f'CPU, {threads} thread{"s" * (threads > 1)} per rank'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    if not distributed.is_initialized():
        return f'one process ({device.removesuffix(" per rank")}), work dir {runner.work_dir}'
    group = f'{distributed.get_backend()}, master {os.environ.get("MASTER_ADDR")}:{os.environ.get("MASTER_PORT")}'
    nodes = int(os.environ.get('GROUP_WORLD_SIZE', 1))  # set by torchrun
    place = f'{nodes} node{"s" * (nodes > 1)} ({group}; {device})'
    return f'rank {rank} of {world} on {place}, work dir {runner.work_dir}'
