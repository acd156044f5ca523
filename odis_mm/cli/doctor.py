"""``python -m odis_mm.doctor``: what stands in the way on this machine, each finding with the line that mends it."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

import torch

FAMILIES = {  # import name: its two distributions
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
OPTIONAL = ('mmdet',)
SMOKE = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'default_hooks.logger.interval=1']


class Finding(NamedTuple):
    """One line of the report."""

    ok: bool
    what: str
    remedy: str = ''  # the one line that mends it


def installed(name: str) -> Optional[str]:
    """Version of a distribution, None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numbers(text: str) -> Tuple[int, ...]:
    """'2.10.0+cpu' as (2, 10, 0)."""
    parts = []
    for part in text.split('+')[0].split('.'):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def packages(found: Callable[[str], Optional[str]] = installed) -> Iterator[Finding]:
    """The OpenMMLab packages: there, once each, of versions that go together."""
    for module, names in FAMILIES.items():
        there = [f'{name} {found(name)}' for name in names if found(name)]
        if len(there) > 1:
            drop = ' '.join(name for name in names if found(name))
            keep = next(name for name in names if found(name))
            yield Finding(
                False,
                f'{" and ".join(there)} are installed side by side and overwrite each other',
                f'pip uninstall -y {drop} && pip install {keep}',
            )
        elif there:
            yield Finding(True, there[0])
        else:
            yield Finding(
                module in OPTIONAL,
                f'{module} is not installed' + (' (needed by detectors only)' if module in OPTIONAL else ''),
                f'pip install {names[0]}',
            )
    if found('mmdet') and found('mmcv') and numbers(found('mmcv')) >= (2, 2):
        yield Finding(False, f'mmdet {found("mmdet")} refuses mmcv {found("mmcv")}', "pip install 'mmcv<2.2'")


def torch_pair(torch_version: str, vision: Optional[str]) -> Finding:
    """torch 2.N goes with torchvision 0.(N + 15)."""
    if vision is None:
        return Finding(False, 'torchvision is not installed', 'pip install torchvision')
    major, minor = (*numbers(torch_version), 0)[:2]
    fits = major != 2 or numbers(vision)[:2] == (0, minor + 15)
    return Finding(
        fits,
        f'torch {torch_version}, torchvision {vision}' + ('' if fits else ', which was built for another torch'),
        '' if fits else f"pip install 'torchvision==0.{minor + 15}.*'",
    )


def operators() -> Iterator[Finding]:
    """Compiled operators that something here calls."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        yield Finding(True, 'torchvision operators run')
    except Exception as error:  # a library that does not load, in any of its ways
        yield Finding(
            False,
            f'torchvision operators do not run ({type(error).__name__}: {error})',
            'pip install --force-reinstall --no-deps torchvision',
        )
    try:
        import_module('mmcv._ext')
        yield Finding(True, 'mmcv operators are there')
    except ImportError as error:
        yield Finding(
            True,
            f'mmcv has no compiled operators ({error}): pretraining needs none, the shipped detectors need none, others in '
            'mmdet may',
        )


def setup_tools(found: Callable[[str], Optional[str]] = installed) -> Finding:
    """setuptools 82 dropped pkg_resources, which older OpenMMLab packages import."""
    have = found('setuptools')
    gone = have is not None and numbers(have) >= (82,)
    return Finding(
        not gone,
        f'setuptools {have or "is not installed"}' + (' has no pkg_resources' if gone else ''),
        "pip install 'setuptools<82'" if gone else '',
    )


class _Danger:
    def __reduce__(self):
        return os.mkdir, (self.where,)


def loading(folder: Path) -> Finding:
    """Whether a checkpoint that would run code is refused, and a plain one read."""
    from ..transfer import load_local
    from ..utils.errors import CheckpointError

    marker, path = folder / 'it_ran', str(folder / 'danger.pth')
    danger = _Danger()
    danger.where = str(marker)
    torch.save(dict(state_dict={}, extra=danger), path)
    try:
        load_local(path)
    except CheckpointError:
        pass
    refused = not marker.exists()
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), path)
    read = load_local(path)['state_dict']['weight'].tolist() == [1.0, 1.0]
    return Finding(
        refused and read,
        f'checkpoints are read as tensors only: {"yes" if refused and read else "NO"}',
        '' if refused and read else "pip install 'torch>=2.6'",
    )


def devices() -> Iterator[Finding]:
    """GPUs with their memory, cores, and memory of the machine."""
    if not torch.cuda.is_available():
        why = 'this torch is built without CUDA' if torch.version.cuda is None else 'torch sees none'
        yield Finding(True, f'no GPU ({why}): the demo runs on CPU, recipes want a GPU')
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        yield Finding(
            free > total / 2,
            f'GPU {i}: {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free',
            'nvidia-smi  # end what holds the memory, or choose another GPU by CUDA_VISIBLE_DEVICES',
        )
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    yield Finding(True, f'{os.cpu_count()} cores, {memory:.0f} GiB of memory')


def writable(folder: str) -> Finding:
    """Whether checkpoints can be written to a folder."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'x')
    except OSError as error:
        return Finding(
            False,
            f'cannot write to {folder} ({error.strerror})',
            f'mkdir -p {folder} && chmod u+w {folder}  # or --work-dir',
        )
    return Finding(True, f'{folder} can be written to')


def smoke(folder: Path, detector: bool) -> Iterator[Finding]:
    """Three iterations of pretraining on a rendered set of six images, and of the detector on the same."""
    from ..datasets.demo import ensure_demo

    environment = {**os.environ, 'ODIS_DEMO_ROOT': ensure_demo(folder / 'demo', num_train=6, num_val=2, size=64)}
    runs = [
        ('pretraining', 'odis_demo', ['train_cfg.max_epochs=1', 'param_scheduler.0.end=0', 'param_scheduler.1.begin=0'])
    ]
    if detector:
        runs.append(('the detector', 'mask_rcnn/mask-rcnn_demo', ['train_cfg.max_epochs=1']))
    for name, config, options in runs:
        command = [
            sys.executable,
            '-m',
            'odis_mm',
            'train',
            config,
            '--work-dir',
            str(folder / 'run'),
            '--cfg-options',
            *SMOKE,
            *options,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ['no message']
        yield Finding(
            done.returncode == 0,
            f'three iterations of {name}' + ('' if done.returncode == 0 else f' failed: {last[0]}'),
            '' if done.returncode == 0 else ' '.join(command[1:4]) + f' {config}  # the whole message',
        )


def examine(folder: Path, work_dir: str, run: bool) -> Iterator[Finding]:
    """All findings, in the order in which they are worth mending."""
    yield Finding(
        sys.version_info >= (3, 10),
        f'Python {platform.python_version()} on {platform.platform()}',
        'use Python 3.10 or newer',
    )
    yield from packages()
    yield torch_pair(torch.__version__, installed('torchvision'))
    yield setup_tools()
    yield from operators()
    yield loading(folder)
    yield from devices()
    yield writable(work_dir)
    if run:
        yield from smoke(folder, any(installed(name) for name in FAMILIES['mmdet']))


def main(argv: Optional[List[str]] = None) -> None:
    """Prints the findings one by one; exits with 1 if one asks for something."""
    parser = argparse.ArgumentParser(prog='python -m odis_mm.doctor', description=__doc__.partition(': ')[2])
    parser.add_argument('--work-dir', default='work_dirs', help='folder that runs will write to')
    parser.add_argument(
        '--no-run', action='store_true', help='leave out the three iterations of pretraining and of the detector'
    )
    args = parser.parse_args(argv)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for finding in examine(Path(folder), args.work_dir, not args.no_run):
            bad += not finding.ok
            print(f'{"ok  " if finding.ok else "BAD "}{finding.what}', flush=True)
            if not finding.ok and finding.remedy:
                print(f'      mend: {finding.remedy}', flush=True)
    print('nothing stands in the way' if not bad else f'{bad} finding{"s" * (bad > 1)} to mend')
    if bad:
        sys.exit(1)


if __name__ == '__main__':
    main()
