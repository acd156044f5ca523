"""Where a training step's time goes: the data pipeline, the step and both together, measured beside the machine's own
limit."""

import contextlib
import copy
import datetime
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple
from unittest import mock

import numpy as np
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import follow_channels
from ..datasets.transforms import collate_views
from ..models.backbones.attention import Form
from ..models.linear import onednn_is_faster, plain_linears
from ..models.selfsup.base import TeacherStudent
from ..utils.environment import cores, hardware
from ..utils.errors import ConfigError
from .cost import StepCost, count_step, everything_on
from .textbook_ibot import TextbookIBOT
from .timing import PARTS, Step, mask_seconds, matrix_peak

GIB = 2**30
KERNELS = dict(
    flash=SDPBackend.FLASH_ATTENTION,
    cudnn=SDPBackend.CUDNN_ATTENTION,
    efficient=SDPBackend.EFFICIENT_ATTENTION,
    math=SDPBackend.MATH,
)


def noise_batch(cfg: Config, batch: int, height: int = 480, width: int = 640) -> dict:
    """A collated batch of noise with three objects per image, through the config's own pipeline but for reading."""
    steps = [
        TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'LoadObjectImage'
    ]
    channels, items = cfg.model.backbone.get('in_channels', 3), []
    for i in range(batch):
        rng = np.random.default_rng(i)
        corner, side = rng.random((3, 2)) * 0.5, 0.2 + 0.3 * rng.random((3, 2))
        boxes = (np.concatenate([corner, corner + side], 1) * [width, height, width, height]).astype(np.float32)
        item = dict(
            img=rng.integers(0, 256, (height, width, channels), dtype=np.uint8),
            height=height,
            width=width,
            img_id=i,
            img_path=f'noise {i}',
            bboxes=boxes,
            masks=None,
            labels=np.zeros(3, np.int64),
            epoch=0,
            sample_idx=i,
            rng=rng,
        )
        for step in steps:
            item = step(item)
        items.append(item)
    return collate_views(items)


def ratio(values: Iterable[float], others: Iterable[float]) -> float:
    """Median of the ratios of what was measured side by side."""
    return statistics.median(a / b for a, b in zip(values, others))


def build_model(cfg: Config, device: torch.device, compiled: bool) -> TeacherStudent:
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if not isinstance(model, TeacherStudent):
        raise ConfigError(f'{cfg.filename}: the benchmark times teacher-student models, not {type(model).__name__}.')
    model.init_weights()
    model.to(device).train()
    everything_on(model)
    if compiled:
        for backbone in (model.backbone, model.teacher['backbone']):
            if not hasattr(backbone, 'compile_blocks'):
                raise ConfigError(f'--compile compiles the blocks of an ObjectViT; {type(backbone).__name__} has none.')
            backbone.compile_blocks()
    return model


def model_benchmark(
    cfg: Config,
    device: torch.device,
    batch: int,
    repeats: int = 5,
    bf16: bool = False,
    compiled: bool = False,
    matrix_size: Optional[int] = None,
) -> dict:
    """Times the step on noise, in turn with the matrix peak, and for ODIS with the step without object masks and with
    iBOT's textbook step.

    Returns:
        dict of numbers: see :func:`table`. Times are medians over ``repeats``; ratios are medians of the ratios within
            a repeat.
    """
    model = build_model(cfg, device, compiled)
    raw = noise_batch(cfg, batch)
    data = model.data_preprocessor(raw, True)
    forms = dict(step=Step(model, cfg, data, bf16))
    if type(model).__name__ == 'ODIS':
        if model.masked_attention:
            forms['no masks'] = Step(model, cfg, data, bf16)
        with contextlib.suppress(ValueError):  # variants of ODIS that no iBOT compares with
            forms['textbook iBOT'] = Step(model, cfg, data, bf16, textbook=True)
    dtype = torch.bfloat16 if bf16 else torch.float32
    times: Dict[str, List[dict]] = {name: [] for name in forms}
    peaks, memory = [], {}
    masked = getattr(model, 'masked_attention', None)
    for repeat in range(repeats + 1):  # the first does not count
        # in turn, so that a busy machine is busy for all of them; there and back, so that what drifts falls on both
        found = matrix_peak(device, dtype, matrix_size)
        pair = [name for name in ('step', 'no masks') if name in forms]
        pair = pair if repeat % 2 else pair[::-1]
        spent: Dict[str, List[dict]] = {name: [] for name in forms}
        for name in (*pair, *(name for name in forms if name not in pair), *pair[::-1]):
            if name == 'no masks':
                model.masked_attention = False
            if device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()
            torch.manual_seed(repeat)  # the same dropped paths in all of them
            spent[name].append(forms[name]())
            if device.type == 'cuda':
                memory[name] = torch.cuda.max_memory_allocated()
            if masked is not None:
                model.masked_attention = masked
        if repeat:
            peaks.append(found)
            for name, runs in spent.items():
                times[name].append({part: statistics.mean(run[part] for run in runs) for part in runs[0]})

    counted = dict(bf16=bf16, device=device.type)
    cost = dict(step=count_step(cfg.model, data, **counted))
    if 'textbook iBOT' in forms:
        cost['textbook iBOT'] = count_step(cfg.model, data, lambda m: TextbookIBOT(m).compute_losses, **counted)
    whole = {name: [spent['step'] for spent in runs] for name, runs in times.items()}
    result = dict(
        batch=batch,
        views=len(raw['data_samples']['view_size'][0]),
        images_per_s=batch / statistics.median(whole['step']),
        seconds={name: statistics.median(values) for name, values in whole.items()},
        all_seconds=whole,
        split={part: statistics.median(spent[part] for spent in times['step']) for part in PARTS},
        loss_share=statistics.median(
            (spent['loss'] + spent['backward, loss']) / spent['step'] for spent in times['step']
        ),
        gflop_per_image={name: value.flops / batch / 1e9 for name, value in cost.items()},
        counted_peak_bytes={name: value.peak for name, value in cost.items()},
        matrix_peak=statistics.median(peaks),
        peak_share=ratio((cost['step'].flops / t for t in whole['step']), peaks),
    )
    if memory:  # all forms share the model, the textbook's optimizer state stands beside ours
        result['measured_peak_bytes'] = memory
    if 'no masks' in whole:
        result['mask_overhead'] = ratio(whole['step'], whole['no masks']) - 1
        result['mask_overhead_attention'] = mask_seconds(model, data, bf16, 10 * repeats) / result['seconds']['step']
    if 'textbook iBOT' in whole:
        result['speedup'] = ratio(whole['textbook iBOT'], whole['step'])
        result['memory_ratio'] = cost['step'].peak / cost['textbook iBOT'].peak
    return result


def options_benchmark(cfg: Config, device: torch.device, batch: int, repeats: int = 5, bf16: bool = False) -> dict:
    """Times the step with each of its speed options, in turn with the plain one: ``packed`` (ODIS), ``compiled`` blocks
    and ``subset``, of drop path (ObjectViT); on GPUs also with each of torch's attention kernels, and with ``one mask``
    of T x T in place of masked rows apart; in float32 on a CPU where :mod:`~odis_mm.models.linear` takes oneDNN, with
    ``F.linear``, too.

    Returns:
        dict of an entry per form: ``seconds`` (median), ``ratio`` (median of the ratios to the plain step beside it),
        ``first`` (seconds of its first step, compilation included) and ``loss`` of the first step, from the same
        weights and random numbers.
    """
    model = build_model(cfg, device, False)
    step = Step(model, cfg, model.data_preprocessor(noise_batch(cfg, batch), True), bf16)
    forms = ['plain']
    if hasattr(model, 'packed'):
        forms.append('packed')
    if hasattr(model.backbone, 'compile_blocks'):
        forms.append('compiled')
        if any(isinstance(part, DropPath) for part in model.backbone.modules()):
            forms.append('subset')
        if device.type == 'cuda':
            forms += [*KERNELS, 'one mask']
        elif not bf16 and onednn_is_faster():
            forms.append('F.linear')
    if len(forms) == 1:
        raise ConfigError(
            f'{cfg.filename}: --options times model.packed and model.backbone.compiled, of which this model has '
            'neither.'
        )
    backbones = (model.backbone, model.teacher['backbone'])
    blocks = {'plain': [getattr(backbone, 'block', None) for backbone in backbones]}
    if 'compiled' in forms:
        for backbone in backbones:
            backbone.compile_blocks()
        blocks['compiled'] = [backbone.block for backbone in backbones]
    start, found = copy.deepcopy(model.state_dict()), {name: dict(all_seconds=[]) for name in forms}
    for repeat in range(repeats + 1):
        for name in forms if repeat % 2 else forms[::-1]:
            if 'packed' in forms:
                model.packed = name == 'packed'
            if 'subset' in forms:
                model.backbone.drop_path_subset = name == 'subset'
            for backbone, block in zip(backbones, blocks.get(name, blocks['plain'])):
                backbone.block = block
            with _computing_by(name):
                if repeat:
                    found[name]['all_seconds'].append(step()['step'])
                    continue
                model.load_state_dict(start)
                torch.manual_seed(0)
                found[name].update(first=step()['step'], loss=float(step.loss))
    plain = found['plain']['all_seconds']
    for part in found.values():
        part.update(seconds=statistics.median(part['all_seconds']), ratio=ratio(part['all_seconds'], plain))
    return dict(batch=batch, **found)


@contextlib.contextmanager
def _computing_by(name: str) -> Iterator[None]:
    """Within, attention is computed as a name of :data:`KERNELS` or 'one mask' says, linear layers as 'F.linear' does;
    of other names, as ever."""
    with contextlib.ExitStack() as stack:
        if name in KERNELS:  # rows with a mask, which not all of them take, by the next
            stack.enter_context(sdpa_kernel([KERNELS[name], SDPBackend.EFFICIENT_ATTENTION], set_priority=True))
        if name == 'one mask':
            stack.enter_context(mock.patch.object(Form, 'of', lambda x: Form.FUSED))
        if name == 'F.linear':
            stack.enter_context(plain_linears())
        yield


def data_benchmark(cfg: Config, images: int = 32, repeats: int = 5) -> dict:
    """Times the pipeline on one core (CPU time), step by step, on the config's own images; and its object-aware against
    plain cropping.

    Returns:
        dict: ``ms_per_image``, ``steps`` (ms per image of each transform), and, where there is such a step,
        ``cropping_ms`` (object-aware minus plain).

    Raises:
        ConfigError: the config's images are not there.
    """
    dataset = _dataset(cfg)
    images = min(images, len(dataset))
    pipeline = cfg.train_dataloader.dataset.pipeline
    steps = [TRANSFORMS.build(step) for step in pipeline]
    sampler = next((i for i, step in enumerate(pipeline) if step['type'] == 'SampleViews'), None)
    plain = None if sampler is None else TRANSFORMS.build({**pipeline[sampler], 'object_aware': False})
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, cropping = [], []
    try:
        for repeat in range(repeats + 1):  # the first reads the files into the cache
            spent, unaware = np.zeros(len(steps)), 0.0
            for index in range(images):
                results = dataset.get_data_info(index)
                results.update(epoch=repeat, rng=np.random.default_rng((0, repeat, index)))
                for i, step in enumerate(steps):
                    other = {**results, 'rng': np.random.default_rng((0, repeat, index))} if i == sampler else None
                    plain_first = (index + repeat) % 2  # what one has touched is in the cache for the other
                    if other and plain_first:
                        unaware += _timed(plain, other)[1]
                    results, seconds = _timed(step, results)
                    spent[i] += seconds
                    if other and not plain_first:
                        unaware += _timed(plain, other)[1]
            if repeat:
                rows.append(1000 * spent / images)
                cropping.append(0.0 if sampler is None else rows[-1][sampler] - 1000 * unaware / images)
    finally:
        torch.set_num_threads(cores)
    result = dict(
        images=images,
        ms_per_image=float(np.median(np.sum(rows, 1))),
        steps=dict(zip([type(step).__name__ for step in steps], np.median(rows, 0).tolist())),
        all_ms=np.sum(rows, 1).tolist(),
    )
    if sampler is not None:
        result['cropping_ms'] = statistics.median(cropping)
    return result


def _timed(step: Callable[[dict], dict], results: dict) -> Tuple[dict, float]:
    """CPU seconds: those of the clock depend on what else the machine does."""
    start = time.process_time()
    results = step(results)
    return results, time.process_time() - start


def _dataset(cfg: Config):
    try:
        return DATASETS.build(cfg.train_dataloader.dataset)
    except FileNotFoundError as error:
        raise ConfigError(f'{error} The data pipeline is measured on real images; --model-only needs none.') from error


def end_to_end_benchmark(
    cfg: Config, device: torch.device, steps: int = 10, bf16: bool = False, compiled: bool = False
) -> dict:
    """Steps fed by the config's own loader: images/s, and the share of time in which the step waits for data."""
    model = build_model(cfg, device, compiled)
    _dataset(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    if len(loader) < 1:
        raise ConfigError(
            f'{cfg.filename}: fewer images than one batch of {loader.batch_size}: lower train_dataloader.batch_size.'
        )
    step, waits, whole, batches = None, [], [], iter(loader)
    for count in range(steps + 2):  # two do not count: the workers start, and have batches ready
        start = time.perf_counter()
        raw = next(batches, None)
        if raw is None:
            batches = iter(loader)
            raw = next(batches)
        waited = time.perf_counter() - start
        data = model.data_preprocessor(raw, True)
        step = step or Step(model, cfg, data, bf16)
        step(data)
        if count > 1:
            waits.append(waited)
            whole.append(time.perf_counter() - start)
    return dict(
        batch=loader.batch_size,
        workers=loader.num_workers,
        images_per_s=loader.batch_size / statistics.median(whole),
        data_wait=sum(waits) / sum(whole),
        all_seconds=whole,
    )


def loader_benchmark(cfg: Config, repeats: int = 5) -> dict:
    """Images/s of the config's loader alone by 1, 2, 4, ... worker processes, up to the number of cores, in turn.

    Returns:
        dict: number of workers to ``images_per_s`` and ``share`` of as many times what one makes.

    Raises:
        ConfigError: the config's images are not there, or too few.
    """
    dataset = _dataset(cfg)
    counts = [2**i for i in range(cores().bit_length())]
    batches = len(dataset) // cfg.train_dataloader.batch_size
    if batches < 2 * counts[-1]:
        raise ConfigError(
            f'{cfg.filename}: {batches} batches are too few to time {counts[-1]} workers: lower '
            'train_dataloader.batch_size, or take a larger data set.'
        )
    speeds: Dict[int, List[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            options = dict(num_workers=count, persistent_workers=False, pin_memory=False, drop_last=True)
            loader = Runner.build_dataloader({**cfg.train_dataloader, **options}, seed=0)
            left = iter(loader)
            for _ in range(count):  # the workers start
                next(left)
            start = time.perf_counter()
            images = loader.batch_size * sum(1 for _ in left)
            speeds[count].append(images / (time.perf_counter() - start))
    one = statistics.median(speeds[1])
    found = {count: statistics.median(each) for count, each in speeds.items()}
    return {str(count): dict(images_per_s=speed, share=speed / count / one) for count, speed in found.items()}


def worker_advice(ms_per_image: float, images_per_s: float, cores: int) -> str:
    """How many loader workers feed a step of that speed."""
    wanted = math.ceil(images_per_s * ms_per_image / 1000 * 1.1)  # a tenth more than just enough
    text = (
        f'{images_per_s:.0f} images/s at {ms_per_image:.1f} ms per image: '
        f'train_dataloader.num_workers={wanted} per rank'
    )
    if wanted > cores:
        text += (
            f', more than the {cores} cores here: the data limit this machine to '
            f'{1000 * cores / ms_per_image:.0f} '
            'images/s'
        )
    return text


def memory_estimate(cfg: Config, bf16: Optional[bool] = None) -> StepCost:
    """Memory of a step of the config's own batch, counted before any run.

    Args:
        bf16: None: as ``optim_wrapper`` says.
    """
    if bf16 is None:
        bf16 = _trains_in_bf16(cfg)
    batch = cfg.train_dataloader.batch_size
    preprocessor = MODELS.build({'type': 'ViewPreprocessor', **cfg.model.get('data_preprocessor', {})})
    data = preprocessor(noise_batch(cfg, batch), True)
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1) > 1
    return count_step(cfg.model, data, bf16=bf16, device='cuda', accumulated=accumulated, flops=False)


def _trains_in_bf16(cfg: Config) -> bool:
    return cfg.optim_wrapper.type.rpartition('.')[2] == 'AutocastOptimWrapper'


def fits(cost: StepCost, gigabytes: float) -> bool:
    """Whether a step fits a GPU of so many GB, with this project's allowance of a tenth and 1 GiB for allocator,
    kernels and context."""
    return cost.peak * 1.1 + GIB <= gigabytes * 1e9


def run(
    cfg: Config,
    modes: Iterable[str],
    device: str = 'cpu',
    bf16: bool = False,
    compiled: bool = False,
    batch: Optional[int] = None,
    repeats: int = 5,
    images: int = 32,
) -> dict:
    """All that is asked for, as a dict that json can keep.

    Args:
        modes: Of 'data', 'model', 'end-to-end', 'memory', 'options'.
        batch: Images a step; None: the config's.
    """
    init_default_scope('mmpretrain')
    follow_channels(cfg)
    if batch:
        cfg.train_dataloader.batch_size = batch
    batch, target = cfg.train_dataloader.batch_size, torch.device(device)
    result = dict(
        config=cfg.filename and Path(cfg.filename).name,
        date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        hardware=hardware(),
        device=device,
        dtype='bf16 autocast' if bf16 else 'float32',
        compiled=compiled,
        threads=torch.get_num_threads(),
        repeats=repeats,
        load=os.getloadavg()[0],
    )
    if 'memory' in modes:
        counted = bf16 or _trains_in_bf16(cfg)
        cost = memory_estimate(cfg, counted)
        result['memory'] = dict(
            batch=batch,
            dtype='bf16 autocast' if counted else 'float32',
            peak_bytes=cost.peak,
            resting_bytes=cost.resting,
            fits={f'{g} GB': fits(cost, g) for g in (16, 24, 40, 80)},
        )
    parts = {
        'data': lambda: data_benchmark(cfg, images, repeats),
        'model': lambda: model_benchmark(cfg, target, batch, repeats, bf16, compiled),
        'options': lambda: options_benchmark(cfg, target, batch, repeats, bf16),
        'loader': lambda: loader_benchmark(cfg, repeats),
        'end-to-end': lambda: end_to_end_benchmark(cfg, target, max(5, repeats), bf16, compiled),
    }
    for name, measure in parts.items():
        if name in modes:
            print(f'measuring: {name}', file=sys.stderr, flush=True)
            result[name] = measure()
    if 'data' in result and 'model' in result:
        result['advice'] = worker_advice(result['data']['ms_per_image'], result['model']['images_per_s'], cores())
    return result


def table(result: dict) -> str:
    """The result for people."""
    lines = [
        f'{result["config"]}: {result["dtype"]}, {result["threads"]} threads, {result["date"]}',
        result['hardware'],
        f'medians of {result["repeats"]} repeats; load of the machine {result["load"]:.1f}',
    ]
    if 'memory' in result:
        part = result['memory']
        lines += [
            f'memory, counted for batch {part["batch"]} in {part["dtype"]}: {part["peak_bytes"] / GIB:.2f} GiB, of it '
            f'resting {part["resting_bytes"] / GIB:.2f}; fits '
            + (', '.join(name for name, good in part['fits'].items() if good) or 'none of the sizes asked for')
        ]
    if 'data' in result:
        part = result['data']
        lines += [
            '',
            f'data, one core: {part["ms_per_image"]:.2f} ms per image ({1000 / part["ms_per_image"]:.0f} images/s per '
            'worker)',
        ]
        lines += [f'  {name:32s} {ms:8.2f} ms' for name, ms in part['steps'].items()]
        if 'cropping_ms' in part:
            lines.append(f'  object-aware over plain cropping {part["cropping_ms"]:8.2f} ms')
    if 'loader' in result:
        lines += ['', 'loader alone'] + [
            f'  {count:>3s} workers {part["images_per_s"]:8.0f} images/s, {part["share"]:.0%} of {count} times one'
            for count, part in result['loader'].items()
        ]
    if 'model' in result:
        part = result['model']
        lines += [
            '',
            f'step, batch {part["batch"]}, {part["views"]} views: {part["seconds"]["step"]:.3f} s, '
            f'{part["images_per_s"]:.2f} images/s',
        ]
        lines += [f'  {name:32s} {s:8.3f} s {s / part["seconds"]["step"]:7.1%}' for name, s in part['split'].items()]
        lines += [
            f'  {part["gflop_per_image"]["step"]:.1f} GFLOP per image, {part["peak_share"]:.1%} of the matrix peak '
            f'({part["matrix_peak"] / 1e9:.0f} GFLOP/s)',
            f'  peak memory, counted: {part["counted_peak_bytes"]["step"] / GIB:.2f} GiB'
            + ''.join(
                f'; measured, {name}: {size / GIB:.2f} GiB'
                for name, size in part.get('measured_peak_bytes', {}).items()
            ),
        ]
        lines.append(f'  losses, heads apart: {part["loss_share"]:.1%} of the step')
        if 'mask_overhead' in part:
            lines.append(
                f'  object masks: {part["mask_overhead"]:+.2%} of the step; of attention timed apart '
                f'{part["mask_overhead_attention"]:+.2%}'
            )
        if 'speedup' in part:
            lines.append(
                f'  textbook iBOT step: {part["seconds"]["textbook iBOT"]:.3f} s, '
                f'{part["gflop_per_image"]["textbook iBOT"]:.1f} GFLOP per image; this step is {part["speedup"]:.2f} '
                f'times as fast at {part["memory_ratio"]:.2f} of its peak memory'
            )
    if 'options' in result:
        part = result['options']
        lines += ['', f'options, batch {part["batch"]}'] + [
            f'  {name:10s} {form["seconds"]:8.3f} s, {form["ratio"]:.3f} of the plain step; the first step '
            f'{form["first"]:.1f} s; loss {form["loss"]:.6f}'
            for name, form in part.items()
            if name != 'batch'
        ]
    if 'end-to-end' in result:
        part = result['end-to-end']
        lines += [
            '',
            f'end to end, batch {part["batch"]}, {part["workers"]} workers: {part["images_per_s"]:.2f} images/s, data '
            f'wait {part["data_wait"]:.1%}',
        ]
    if 'advice' in result:
        lines += ['', result['advice']]
    return '\n'.join(lines)
