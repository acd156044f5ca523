"""``odis-mm replay CONFIG FILE``: rerun a batch that ``NonFiniteLossHook`` saved."""

import argparse
from typing import Optional, Sequence

from ..utils.errors import CheckpointError
from ..utils.parser import Parser
from ..utils.paths import check_checkpoint, find_config
from .common import AMP, device_or_best, run


def replay_main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    parser = Parser(prog='odis-mm replay', description='Rerun a batch whose loss was not finite.')
    parser.add_argument('config', help='path, or name of a shipped recipe; the copy in the work dir is best')
    parser.add_argument('file', help='nonfinite_iter_N.pth of the work dir')
    parser.add_argument(
        '--checkpoint', help='weights, best the last before the iteration; without it the model is freshly initialised'
    )
    parser.add_argument('--amp', choices=AMP, help='as in the run')
    args = parser.parse_args(argv)

    def check() -> None:
        find_config(args.config)
        for file in (args.file, args.checkpoint):
            if file is not None:
                check_checkpoint(file)

    run(lambda: _replay(args), check)


def _replay(args: argparse.Namespace) -> None:
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from ..config import load_config
    from ..engine.fit import kind_of, load_fitting
    from ..engine.replay import replay
    from ..transfer import load_local

    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    saved = load_local(args.file, 'cpu')
    if not isinstance(saved, dict) or not {'batch', 'random', 'iteration'} <= set(saved):
        raise CheckpointError(
            f'{args.file} is {kind_of(saved)}, and not a saved batch: take a nonfinite_iter_N.pth of the work dir.'
        )
    model = MODELS.build(cfg.model)
    model.init_weights()
    if args.checkpoint:
        content = load_local(args.checkpoint, 'cpu')
        for note in load_fitting(model, content, args.checkpoint, 'take an epoch_N.pth of the run.'):
            print(note)
    terms, module = replay(model.to(device_or_best(None)), saved, args.amp)
    print(f'iteration {saved["iteration"] + 1}, images {", ".join(map(str, saved["images"]))}')
    for name, value in terms.items():
        print(f'{name}: {value:g} (in the run: {saved["terms"].get(name, float("nan")):g})')
    print(f'first module with an output that is not finite: {module or "none"}')
