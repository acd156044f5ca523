#!/usr/bin/env python
"""Time of one GTSA training step, beside the same step with the losses and heads in their slow form (gtsa_reference.py).

    python tools/analysis/benchmark_gtsa.py --batch 8 --threads 2
"""
import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed
sys.path.insert(1, str(Path(__file__).resolve().parent))

import gtsa_reference  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmpretrain.registry import MODELS, TRANSFORMS  # noqa: E402

from odis_mm.apis import load_config  # noqa: E402
from odis_mm.datasets.transforms import PackViews, RenderViews, collate_views  # noqa: E402
from odis_mm.structures import ViewBatch  # noqa: E402
from odis_mm.workflows.stages import hardware  # noqa: E402


def make_batch(cfg, batch: int) -> dict:
    """Noise of 480 x 640 pixels, viewed as the config says."""
    steps = [TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[1]), RenderViews(), PackViews()]
    items = []
    for i in range(batch):
        rng = np.random.default_rng(i)
        item = dict(img=rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), height=480, width=640, img_id=i, rng=rng)
        for step in steps:
            item = step(item)
        items.append(item)
    return collate_views(items)


def slow_losses(model, inputs: List[torch.Tensor], samples: dict, heads_once: bool) -> Dict[str, torch.Tensor]:
    """The backbones as in training, everything after them in the slow form."""
    student = [model._map(model._patches(model.backbone, x), x) for x in inputs]
    with torch.no_grad():
        teacher = model.extract_feat(inputs[0])
    return gtsa_reference.losses(model.head, model.teacher['neck'], model.neck, teacher, student, samples, model.patch_size, heads_once)


def heads_alone(model, inputs: List[torch.Tensor], samples: dict) -> Callable[[], None]:
    """Necks, predictor, classifier, losses and their backward pass, on features that are there."""
    with torch.no_grad():
        tokens = [model._patches(model.backbone, x) for x in inputs]
        teacher_map = model.extract_feat(inputs[0])
    views = ViewBatch(*(samples[key] for key in ('crop', 'view_size', 'flip', 'rot90')))

    def step() -> None:
        features = [t.detach().requires_grad_() for t in tokens]
        student = [model.neck(model._map(t, x)) for t, x in zip(features, inputs)]
        with torch.no_grad():
            teacher = model.teacher['neck'](teacher_map)
        losses = model.head.map_losses(teacher, student, views, model.patch_size)
        losses.update(model.head.rotation_loss(torch.cat([t.mean(1) for t in features]), views.rot90.T.flatten()))
        total(losses).backward()

    return step


def total(losses: Dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(value for key, value in losses.items() if 'loss' in key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='gtsa_vits_coco')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=3, help='of each form, after one that is not counted; the median is reported')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    cfg = load_config(args.config, {'model.head.correspondence_epoch': 0})
    model = MODELS.build(cfg.model)
    model.train()
    model.set_progress(0, 1000, 10)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    data = model.data_preprocessor(make_batch(cfg, args.batch), True)
    inputs, samples = data['inputs'], data['data_samples']

    def training_step(losses: Callable) -> Callable[[], None]:
        def step() -> None:
            total(losses(inputs, samples)).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.after_optimizer_step()
        return step

    forms = dict(step=training_step(model.compute_losses), heads=heads_alone(model, inputs, samples),
                 slow=training_step(lambda *batch: slow_losses(model, *batch, heads_once=False)),
                 once=training_step(lambda *batch: slow_losses(model, *batch, heads_once=True)))
    times: Dict[str, List[float]] = {name: [] for name in forms}
    for repeat in range(args.repeats + 1):  # in turn, so that a busy machine is busy for all of them
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if repeat:
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f'{args.config}, batch {args.batch}, {len(samples["rot90"][0])} views, float32, {args.threads} threads; '
          f'{datetime.date.today().isoformat()}; {hardware()}')
    words = dict(step='training step', heads='of it heads and losses, both directions', slow='step, heads and losses pair by pair',
                 once='step, heads view by view, losses pair by pair')
    for name, values in times.items():
        print(f'{words[name]:46s} {median[name]:7.2f} s   ({", ".join(f"{t:.2f}" for t in values)})')
    slow, once, heads = (median[name] / median['step'] for name in ('slow', 'once', 'heads'))
    print(f'the slow forms take {slow:.2f} and {once:.2f} times as long; heads and losses are {heads:.0%} of a training step')


if __name__ == '__main__':
    main()
