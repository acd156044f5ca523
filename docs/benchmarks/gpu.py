"""What docs/benchmarks/gpu.md says of stochastic depth, of one traced step and of loaders:

python docs/benchmarks/gpu.py drop-path odis_vits_coco 128 0.3
python docs/benchmarks/gpu.py trace odis_vits_coco 128
python docs/benchmarks/gpu.py workers data/coco
"""

import statistics
import sys
import time
from collections import Counter

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.profiler import ProfilerActivity, profile

import odis_mm
from odis_mm.analysis.benchmark import build_model, noise_batch
from odis_mm.analysis.timing import Step
from odis_mm.config import load_config, parse_options

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def make_step(config: str, batch: int, *options: str) -> Step:
    cfg = load_config(config, parse_options(options))
    model = build_model(cfg, DEVICE, False)
    return Step(model, cfg, model.data_preprocessor(noise_batch(cfg, batch), True), bf16=True)


def drop_path(config: str, batch: str, rate: str) -> None:
    given = f'model.backbone.drop_path_rate={rate}'
    forms = {
        'none': ['model.backbone.drop_path_rate=0'],
        'one by one': [given],
        'subset': [given, '+model.backbone.drop_path_subset=True'],
    }
    steps = {name: make_step(config, int(batch), *options) for name, options in forms.items()}
    times = {name: [] for name in steps}
    for repeat in range(8):  # the first two do not count
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            seconds = steps[name]()['step']
            if repeat > 1:
                times[name].append(seconds)
    print({name: f'{1000 * statistics.median(values):.1f} ms' for name, values in times.items()})


def trace(config: str, batch: str) -> None:
    step = make_step(config, int(batch))
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
    busy, calls = Counter(), Counter()
    for event in found.events():
        if str(event.device_type).endswith('CUDA'):
            busy[event.name] += (event.time_range.end - event.time_range.start) / 1000
            calls[event.name] += 1
    print(f'{sum(busy.values()):.1f} ms in {sum(calls.values())} kernels')
    for name, ms in busy.most_common(30):
        print(f'{ms:8.2f} ms {calls[name]:5d}  {name[:100]}')


def workers(root: str) -> None:
    torch.set_num_threads(1)
    for count in (0, 1, 2, 4, 8):
        options = [f'dataset.data_root={root}/', f'num_workers={count}', 'batch_size=8']
        if not count:
            options.append('persistent_workers=False')
        cfg = load_config('odis_vits_coco', parse_options([f'train_dataloader.{option}' for option in options]))
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        for _ in loader:  # the workers start
            pass
        images, begun = 0, time.perf_counter()
        for _ in range(2 * max(1, count)):
            images += sum(len(batch['inputs'][0]) // 2 for batch in loader)
        print(f'{count} workers: {images / (time.perf_counter() - begun):.0f} images/s')


if __name__ == '__main__':
    odis_mm.register()
    init_default_scope('mmpretrain')
    MMLogger.get_current_instance().setLevel('ERROR')
    {'drop-path': drop_path, 'trace': trace, 'workers': workers}[sys.argv[1]](*sys.argv[2:])
