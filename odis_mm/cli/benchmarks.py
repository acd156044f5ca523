"""``odis-mm benchmark CONFIG`` and its relatives: where the time goes."""

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from ..utils.environment import hardware
from ..utils.parser import Parser, at_least
from ..utils.paths import find_config
from .common import device_or_best, run


def benchmark_main(argv: Optional[List[str]] = None) -> None:
    """``tools/analysis/benchmark.py CONFIG``: prints the table, keeps the json."""
    parser = Parser(
        prog='odis-mm benchmark',
        description="Where the time of a pretraining step goes, and how far it is from the machine's limit.",
    )
    parser.add_argument('config', help='path of a config, or name of a shipped one such as odis_vits_coco')
    mode = parser.add_mutually_exclusive_group()
    for name in ('data', 'model'):
        mode.add_argument(f'--{name}-only', dest='mode', action='store_const', const=name)
    mode.add_argument(
        '--options',
        dest='mode',
        action='store_const',
        const='options',
        help='the step with each of its speed options in turn',
    )
    mode.add_argument(
        '--loader-only', dest='mode', action='store_const', const='loader', help='by 1, 2, 4, ... worker processes'
    )
    mode.add_argument('--end-to-end', dest='mode', action='store_const', const='end-to-end')
    mode.add_argument(
        '--memory-only',
        dest='mode',
        action='store_const',
        const='memory',
        help='count the memory of a step; nothing is run',
    )
    parser.add_argument('--device', help='default: the GPU, if there is one')
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile of the blocks: the first steps take minutes'
    )
    parser.add_argument('--batch', type=at_least(1), help='images per step (default: of the config)')
    parser.add_argument('--repeats', type=at_least(1), default=5)
    parser.add_argument('--images', type=at_least(1), default=32, help='of the data set, for the pipeline')
    parser.add_argument('--threads', type=at_least(1), help='of the step on CPUs (default: all cores)')
    parser.add_argument('--out', metavar='JSON', help='keep the numbers')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', action='extend')
    args = parser.parse_args(argv)

    def work() -> None:
        import torch
        from mmengine.logging import MMLogger

        from ..analysis import benchmark
        from ..config import load_config, parse_options

        MMLogger.get_current_instance().setLevel('WARNING')  # mmengine tells how each parameter is initialised
        if args.threads:
            torch.set_num_threads(args.threads)
        cfg = load_config(args.config, parse_options(args.cfg_options))
        result = benchmark.run(
            cfg,
            [args.mode] if args.mode else ['memory', 'data', 'model', 'end-to-end'],
            device_or_best(args.device),
            args.amp,
            args.compile,
            args.batch,
            args.repeats,
            args.images,
        )
        print(benchmark.table(result))
        _keep(args.out, result)

    run(work, lambda: find_config(args.config), args.out)


def startup_main(argv: Optional[List[str]] = None, train: Sequence[str] = ()) -> None:
    """``tools/analysis/benchmark_startup.py CONFIG``: prints the times, keeps the json."""
    parser = Parser(description='Seconds from the command to the first finished iteration of training.')
    parser.add_argument('config', nargs='?', default='odis_demo')
    parser.add_argument(
        '--repeats', type=at_least(1), default=5, help='counted ones; one before them fills the page cache'
    )
    parser.add_argument('--out', metavar='JSON', help='keep the numbers')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', action='extend')
    args = parser.parse_args(argv)

    def work() -> None:
        from ..analysis.startup import TRAIN, seconds_to_first_iteration

        program = train or TRAIN
        seconds = [seconds_to_first_iteration(args.config, args.cfg_options, program) for _ in range(args.repeats + 1)]
        seconds = seconds[1:]
        result = dict(
            config=args.config, **_where(), median=statistics.median(seconds), seconds=seconds, load=os.getloadavg()[0]
        )
        print(
            f'{args.config}: first iteration after {result["median"]:.1f} s, the median of {args.repeats} '
            f'({", ".join(f"{s:.1f}" for s in seconds)}); {result["hardware"]}, load {result["load"]:.1f}'
        )
        _keep(args.out, result)

    run(work, out=args.out)


def annotations_main(argv: Optional[List[str]] = None, train: Sequence[str] = ()) -> None:
    """``tools/analysis/benchmark_annotations.py``: what reading a json of COCO train2017's size costs, first and from
    the cache."""
    parser = Parser(description='CPU seconds and own memory to read a large COCO-style json.')
    parser.add_argument('--train', action='store_true', help='also time trainings by it to their first iteration')
    parser.add_argument('--images', type=at_least(1), default=118_287)
    parser.add_argument('--objects', type=at_least(1), default=860_001)
    parser.add_argument('--boxes', action='store_true', help='leave the masks out')
    parser.add_argument('--repeats', type=at_least(1), default=3)
    parser.add_argument('--out', metavar='JSON', help='keep the numbers')
    args = parser.parse_args(argv)

    def work() -> None:
        from ..analysis.annotations import annotations_benchmark
        from ..analysis.startup import TRAIN

        program = (train or TRAIN) if args.train else ()
        result = annotations_benchmark(args.images, args.objects, not args.boxes, args.repeats, program)
        result.update(_where())
        print(f'json of {result["json_mb"]:.0f} MB, cache of {result["cache_mb"]:.0f} MB; {result["hardware"]}')
        for name in ('first', 'again'):
            found = {key: statistics.median(each[key] for each in result[name]) for key in result[name][0]}
            print(
                f'{name}: {found["cpu"]:.1f} CPU s ({found["seconds"]:.1f} s), {found["own_mb"]:.0f} MB of its own, '
                f'peak {found["peak_mb"]:.0f} MB, {found["read_us"]:.0f} us to read an image'
            )
            if seconds := result.get(f'start_{name}'):
                print(f'  first iteration after {statistics.median(seconds):.1f} s')
        _keep(args.out, result)

    run(work, out=args.out)


def gtsa_main(argv: Optional[List[str]] = None) -> None:
    """``tools/analysis/benchmark_gtsa.py``: time of one GTSA step beside its slow forms."""
    parser = Parser(
        description='Time of one GTSA training step, beside the same step with losses and heads in their slow form.'
    )
    parser.add_argument('--config', default='gtsa_vits_coco')
    parser.add_argument('--batch', type=at_least(1), default=8)
    parser.add_argument('--threads', type=at_least(1), default=2)
    parser.add_argument(
        '--repeats',
        type=at_least(1),
        default=3,
        help='of each form, after one whose FLOPs are counted; the median is reported',
    )
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    args = parser.parse_args(argv)
    run(lambda: _compare_gtsa(args), lambda: find_config(args.config))


def _compare_gtsa(args: argparse.Namespace) -> None:
    import torch
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from ..analysis import benchmark, benchmark_gtsa
    from ..analysis.cost import count_flops, total_loss
    from ..config import load_config

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    cfg = load_config(args.config, {'model.head.correspondence_epoch': 0})
    model = MODELS.build(cfg.model)
    model.train()
    model.set_progress(0, 1000, 10)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    data = model.data_preprocessor(benchmark.noise_batch(cfg, args.batch), True)
    inputs, samples = data['inputs'], data['data_samples']

    def both_directions(losses: Callable) -> Callable[[], None]:
        def work() -> None:
            with torch.autocast('cpu', torch.bfloat16, enabled=args.amp):
                loss = total_loss(losses(inputs, samples))
            loss.backward()

        return work

    def training_step(losses: Callable) -> Callable[[], None]:
        gradients = both_directions(losses)

        def step() -> None:
            gradients()
            optimizer.step()
            optimizer.zero_grad()
            model.after_optimizer_step()

        return step

    forms = dict(
        step=training_step(model.compute_losses),
        heads=both_directions(benchmark_gtsa.heads_alone(model, inputs, samples)),
        slow=training_step(lambda *batch: benchmark_gtsa.slow_losses(model, *batch, heads_once=False)),
        once=training_step(lambda *batch: benchmark_gtsa.slow_losses(model, *batch, heads_once=True)),
    )
    times: Dict[str, List[float]] = {name: [] for name in forms}
    gflop = {name: count_flops(form) / args.batch / 1e9 for name, form in forms.items()}
    for _ in range(args.repeats):  # in turn, so that a busy machine is busy for all of them
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f'{args.config}, batch {args.batch}, {len(samples["rot90"][0])} views, '
        f'{"bf16 autocast" if args.amp else "float32"}, {args.threads} threads; '
        f'{datetime.date.today().isoformat()}; {hardware()}'
    )
    words = dict(
        step='training step',
        heads='of it heads and losses, both directions',
        slow='step, heads and losses pair by pair',
        once='step, heads view by view, losses pair by pair',
    )
    for name, values in times.items():
        listed = ', '.join(f'{t:.2f}' for t in values)
        print(f'{words[name]:46s} {median[name]:7.2f} s   ({listed})   {gflop[name]:.2f} GFLOP per image')
    slow, once, heads = (median[name] / median['step'] for name in ('slow', 'once', 'heads'))
    print(
        f'the slow forms take {slow:.2f} and {once:.2f} times as long; heads and losses are {heads:.0%} of a training '
        'step'
    )


def peer_main(argv: Optional[List[str]] = None) -> None:
    """``tools/analysis/benchmark_peer.py``: a step of lightly-train's ``dinov2`` beside ours."""
    parser = Parser(
        description="A step of lightly-train's dinov2, if that package is installed, and one of ours, in turn on the "
        'same views: CPU seconds on a CPU, seconds on a GPU.'
    )
    parser.add_argument(
        '--config', default='odis_vits_coco', help='an ODIS; it takes the patches and views of the peer'
    )
    parser.add_argument(
        '--peer-model', default='dinov2/vits14-notpretrained', help="as lightly_train.pretrain's model="
    )
    parser.add_argument('--drop-path', type=float, default=0.3, help='in every block of both students')
    parser.add_argument('--device', help='default: the GPU, if there is one')
    parser.add_argument('--amp', action='store_true', help='bf16 autocast, in both')
    parser.add_argument('--batch', type=at_least(1), default=8)
    parser.add_argument('--repeats', type=at_least(1), default=5)
    parser.add_argument('--threads', type=at_least(1), help='on CPUs (default: all cores)')
    parser.add_argument('--out', metavar='JSON', help='keep the numbers')
    args = parser.parse_args(argv)

    def work() -> None:
        import torch
        from mmengine.logging import MMLogger

        from ..analysis.peer import lightly_benchmark
        from ..config import load_config

        MMLogger.get_current_instance().setLevel('WARNING')
        if args.threads:
            torch.set_num_threads(args.threads)
        cfg = load_config(args.config)
        result = lightly_benchmark(
            cfg, args.peer_model, args.batch, args.repeats, args.drop_path, device_or_best(args.device), args.amp
        )
        result.update(_where())
        print(
            f'{args.peer_model} of lightly-train {result["version"]}: {statistics.median(result["peer"]):.2f} s a '
            f'step, ours {statistics.median(result["ours"]):.2f} s; {result["ratio"]:.2f} times as fast, the median of '
            f'{args.repeats} pairs; batch {args.batch}, drop path {args.drop_path}; {result["hardware"]}'
        )
        _keep(args.out, result)

    run(work, out=args.out)


def _where() -> Dict[str, str]:
    return dict(date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'), hardware=hardware())


def _keep(out: Optional[str], result: dict) -> None:
    """Write the numbers to the file of ``--out``, if there is one."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + '\n')
