"""Check an installation: each problem with the one line that fixes it. Starts with nothing but Python.

What is missing or broken here is what this command is to name, so every package is imported inside a function and under
``try``.
"""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from ..utils.parser import Parser

FAMILIES = {  # import name: its two distributions, and names of older ones
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
OPTIONAL = ('mmdet',)
LIBRARIES = {  # import name: what pip calls it; in an order in which none comes before one that it imports
    'numpy': 'numpy',
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'opencv-python-headless',
    'PIL': 'Pillow',
    'scipy': 'scipy',
    'sklearn': 'scikit-learn',
    'pycocotools': 'pycocotools',
    'matplotlib': 'matplotlib',
}
DEMO = ['--num-train', '6', '--num-val', '2', '--size', '64']
TRIAL = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'default_hooks.logger.interval=1']
TRIALS = {  # a run of seconds: its config, and the options that shorten it
    'pretraining': (
        'odis_demo',
        [
            *TRIAL,
            'train_cfg.max_epochs=2',
            'param_scheduler.0.end=1',
            'param_scheduler.1.begin=1',
            'default_hooks.views.pictures=1',
        ],
    ),
    'a detector': (
        'mask_rcnn/mask-rcnn_demo',
        [
            *TRIAL,
            'train_dataloader.persistent_workers=False',
            'train_cfg.max_iters=3',
            'train_cfg.val_interval=3',
            'param_scheduler.0.end=1',
            'param_scheduler.1.begin=1',
            'param_scheduler.1.end=3',
            'param_scheduler.1.T_max=2',
        ],
    ),
}


class Finding(NamedTuple):
    """One line of the report."""

    ok: bool
    what: str
    remedy: str = ''  # the one line that fixes it


def installed(name: str) -> Optional[str]:
    """Return the version of a distribution, None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numbers(text: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version: (2, 10, 0) for '2.10.0+cpu'."""
    parts = []
    for part in text.split('+')[0].split('.'):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def packages(found: Callable[[str], Optional[str]] = installed) -> Iterator[Finding]:
    """Yield whether the OpenMMLab packages are there, once each, in versions that go together."""
    onedl = not any(found(names[0]) for names in FAMILIES.values())  # the maintained family, unless the other is in use
    for module, names in FAMILIES.items():
        there = [f'{name} {found(name)}' for name in names if found(name)]
        if len(there) > 1:
            drop = ' '.join(name for name in names if found(name))
            keep = next(name for name in names if found(name))
            yield Finding(
                False,
                f'{" and ".join(there)} are installed side by side and overwrite each other',
                f'pip uninstall -y {drop} && pip install {_pip_name(keep)}',
            )
        elif there:
            yield Finding(True, there[0])
        else:
            yield Finding(
                module in OPTIONAL,
                f'{module} is not installed' + (' (needed by detectors only)' if module in OPTIONAL else ''),
                f'pip install {_pip_name(names[onedl])}',
            )
    if found('mmdet') and found('mmcv') and numbers(found('mmcv')) >= (2, 2):
        yield Finding(False, f'mmdet {found("mmdet")} refuses mmcv {found("mmcv")}', "pip install 'mmcv<2.2'")


def _pip_name(distribution: str) -> str:
    """Return the arguments of ``pip install``: mmcv's sources are built with the torch that is there."""
    return f'--no-build-isolation {distribution}' if distribution in ('mmcv', 'onedl-mmcv') else distribution


def torch_pair(torch_version: Optional[str], vision: Optional[str]) -> Finding:
    """Return whether torch 2.N has torchvision 0.(N + 15) beside it."""
    if torch_version is None:
        return Finding(False, 'torch is not installed', "pip install 'torch>=2.1,<2.14' torchvision")
    major, minor = (*numbers(torch_version), 0)[:2]
    fitting = f'torchvision==0.{minor + 15}.*'
    if vision is None:
        return Finding(False, 'torchvision is not installed', f"pip install '{fitting}'")
    fits = major != 2 or numbers(vision)[:2] == (0, minor + 15)
    return Finding(
        fits,
        f'torch {torch_version}, torchvision {vision}' + ('' if fits else ', which was built for another torch'),
        '' if fits else f"pip install '{fitting}'",
    )


def libraries() -> Iterator[Finding]:
    """Yield the other packages that are not installed."""
    for name, distribution in LIBRARIES.items():
        if name not in ('torch', 'torchvision') and _is_absent(name):  # those are a pair of their own
            yield Finding(False, f'{name} is not installed', f'pip install {distribution}')


def _is_absent(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ImportError:
        return True


def imports() -> Finding:
    """Return the first package that is installed and cannot be imported: others may fail because of it."""
    for name in (*LIBRARIES, *FAMILIES):
        if name in OPTIONAL and _is_absent(name):
            continue
        try:
            import_module(name)
        except Exception as error:  # whatever a package that does not load may raise
            distribution = LIBRARIES.get(name) or next((d for d in FAMILIES.get(name, ()) if installed(d)), name)
            return Finding(
                False,
                f'{name} cannot be imported ({type(error).__name__}: {" ".join(str(error).split())})',
                f'pip install --force-reinstall --no-deps {_pip_name(distribution)}',
            )
    return Finding(True, 'all packages can be imported')


def operators() -> Iterator[Finding]:
    """Yield whether the compiled operators that something here calls run."""
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        yield Finding(True, 'torchvision operators run')
    except Exception as error:  # a library that does not load, in any of its ways
        yield Finding(
            False,
            f'torchvision operators do not run ({type(error).__name__}: {error})',
            'pip install --force-reinstall --no-deps torchvision',
        )
    detectors = any(installed(name) for name in FAMILIES['mmdet'])
    name = 'onedl-mmcv' if installed('onedl-mmcv') else 'mmcv'
    wanted = f'{name}=={installed(name)}' if installed(name) else name
    again = f'pip install --no-cache-dir --force-reinstall --no-deps --no-build-isolation {wanted}'
    try:
        import_module('mmcv._ext')
    except ImportError as error:
        yield Finding(
            not detectors,
            f'mmcv has no compiled operators ({error}): pretraining needs none, detectors do',
            ('pip uninstall -y mmcv-lite && ' if installed('mmcv-lite') else '') + again,
        )
        return
    import torch  # is there: the operators were loaded with it

    from ..utils.environment import detectors_lack_gpu

    lacking = detectors_lack_gpu()
    yield Finding(
        not (detectors and lacking),
        'mmcv operators are there'
        + (', for CPUs alone: pretraining runs on the GPU, detectors do not' if lacking else ''),
        f'FORCE_CUDA=1 {again}  # with nvcc of CUDA {torch.version.cuda} on the PATH',
    )


def setup_tools(found: Callable[[str], Optional[str]] = installed) -> Finding:
    """Return whether setuptools has pkg_resources, which older OpenMMLab packages import; version 82 dropped it."""
    have = found('setuptools')
    gone = have is not None and numbers(have) >= (82,)
    return Finding(
        not gone,
        f'setuptools {have or "is not installed"}' + (' has no pkg_resources' if gone else ''),
        "pip install 'setuptools<82'" if gone else '',
    )


class _Danger:
    """What a harmful checkpoint holds: restoring it makes a folder."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def loading(folder: Path) -> Finding:
    """Return whether a checkpoint that would run code is refused, and a plain one read."""
    import torch

    from ..transfer import CheckpointError, load_local

    marker, path = folder / 'it_ran', str(folder / 'danger.pth')
    torch.save(dict(state_dict={}, extra=_Danger(str(marker))), path)
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
    """Yield GPUs with their memory, cores, and memory of the machine."""
    import torch

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
    if hasattr(os, 'sysconf'):
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
        yield Finding(True, f'{os.cpu_count()} cores, {memory:.0f} GiB of memory')


def writable(folder: str) -> Finding:
    """Return whether checkpoints can be written to a folder."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'x')
    except OSError as error:
        quoted = shlex.quote(folder)
        return Finding(
            False,
            f'cannot write to {folder} ({error.strerror})',
            f'mkdir -p {quoted} && chmod u+w {quoted}  # or choose another folder with --work-dir',
        )
    return Finding(True, f'{folder} can be written to')


def trials(folder: Path, detector: bool) -> Iterator[Finding]:
    """Yield whether a few iterations of pretraining run on a rendered set of six images, and of a detector on the
    same."""
    from ..datasets.demo import ensure_demo

    environment = {**os.environ, 'ODIS_DEMO_ROOT': ensure_demo(folder / 'demo', num_train=6, num_val=2, size=64)}
    for name, (config, options) in TRIALS.items():
        if name == 'a detector' and not detector:
            continue
        command = [sys.executable, '-m', 'odis_mm', 'train', config, '--work-dir']
        options = ['--cfg-options', *options]
        done = subprocess.run(
            [*command, str(folder / config), *options], env=environment, capture_output=True, text=True
        )
        ok = done.returncode == 0
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ['no message'])[-1]
        demo = shlex.join([sys.executable, '-m', 'odis_mm', 'demo', '--root', 'doctor_demo', *DEMO])
        again = shlex.join([*command, 'doctor_run', *options])
        yield Finding(
            ok,
            f'{name}: {"a few iterations run" if ok else f"failed: {last}"}',
            '' if ok else f'{demo} && ODIS_DEMO_ROOT=doctor_demo ODIS_MM_DEBUG=1 {again}  # shows where it fails',
        )


def examine(folder: Path, work_dir: str, run: bool) -> Iterator[Finding]:
    """Yield all findings, in the order in which they are worth fixing; what needs a broken package is left out."""
    yield Finding(
        (3, 10) <= sys.version_info[:2] < (3, 13),
        f'Python {platform.python_version()} on {platform.platform()}',
        'install Python 3.10, 3.11 or 3.12 and make an environment with it',
    )
    basic = [*packages(), torch_pair(installed('torch'), installed('torchvision')), setup_tools(), *libraries()]
    yield from basic
    yield writable(work_dir)
    if not all(finding.ok for finding in basic):
        return
    found = imports()
    yield found
    if not found.ok:
        return
    yield from operators()
    yield loading(folder)
    yield from devices()
    if run:
        yield from trials(folder, any(installed(name) for name in FAMILIES['mmdet']))


def main(argv: Optional[List[str]] = None) -> None:
    """Print the findings one by one; exit with 1 if there is a problem."""
    parser = Parser(prog='odis-mm doctor', description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', default='work_dirs', help='folder that runs will write to')
    parser.add_argument(
        '--no-run', action='store_true', help='leave out the few iterations of pretraining and of a detector'
    )
    args = parser.parse_args(argv)
    problems = 0
    with tempfile.TemporaryDirectory() as folder:
        for finding in examine(Path(folder), args.work_dir, not args.no_run):
            problems += not finding.ok
            print(f'{"ok      " if finding.ok else "PROBLEM "}{finding.what}', flush=True)
            if not finding.ok and finding.remedy:
                print(f'        fix: {finding.remedy}', flush=True)
    print('no problem found' if not problems else f'{problems} problem{"s" * (problems > 1)} found')
    if problems:
        sys.exit(1)


if __name__ == '__main__':
    main()
