"""Stages of an experiment: each is run once, remembered in a file, and continued where it was interrupted."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Union

from ..utils.errors import USER_ERROR, ConfigError, StageError

AP_KEYS = {
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
}
_SHOWN = re.compile(
    r'Epoch\((train|val)\)|Iter\((train|val)\)|backbone <- |mmengine - INFO - lr = |ERROR|Error|exported'
)


class Stages:
    """Runs named stages and prints where the whole stands.

    Args:
        work_dir: A stage's files and its ``result.json`` go to a folder of its name in here.
        total: Number of stages, for the progress line.
    """

    def __init__(self, work_dir: Union[str, Path], total: int):
        self.work_dir, self.total, self.start = Path(work_dir), total, time.time()

    def say(self, text: str) -> None:
        print(f'[{(time.time() - self.start) / 60:5.1f} min] {text}', flush=True)

    def run(self, name: str, settings: dict, work: Callable[[Path], dict]) -> dict:
        """Result of ``work(folder)``, from the file if a stage of the same settings was finished before.

        Raises:
            ConfigError: if the folder holds the result of other settings: nothing is overwritten.
            StageError: in a process whose parent was killed.
        """
        folder = self.work_dir / name
        record = folder / 'result.json'
        settings = json.loads(json.dumps(settings))
        if (folder / 'settings.json').is_file() and json.loads((folder / 'settings.json').read_text()) != settings:
            raise ConfigError(
                f'{folder} was made with other settings than {settings}: take another --work-dir, or remove it.'
            )
        if record.is_file():
            self.say(f'{name}: done before')
            return json.loads(record.read_text())
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise StageError(f'{name} is not begun: the command that asked for it is gone.')
        done = len(list(self.work_dir.glob('*/result.json')))  # whoever did them: stages may run in several processes
        self.say(f'{name} ({done} of {self.total} stages are done)')
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'settings.json').write_text(json.dumps(settings))
        started = time.time()
        result = work(folder)
        result['minutes'] = round((time.time() - started) / 60, 2)
        partial = record.with_suffix('.tmp')
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(record)
        return result

    def train(self, config: str, folder: Path, options: Dict[str, object], env: Optional[dict] = None) -> None:
        """``tools/train.py CONFIG --resume`` as a process of its own; its progress lines are shown, everything is in its log.

        Raises:
            StageError: if it fails, with the sentence in which it ended, or, after showing its last lines, with its exit code.
        """
        pairs = [f'{key}={value}' for key, value in options.items()]
        command = [sys.executable, '-m', 'odis_mm', 'train', config, '--work-dir', str(folder), '--resume']
        command += ['--cfg-options', *pairs] if pairs else []
        tail: List[str] = []
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})},
        )
        with process.stdout:
            for line in process.stdout:
                tail = (tail + [line])[-20:]
                if _SHOWN.search(line):
                    self.say('  ' + re.sub(r'^.*?mmengine - \w+ - ', '', line.strip())[:180])
        if not process.wait():
            return
        sentences = [line.partition('error: ')[2].strip() for line in tail if line.startswith('error: ')]
        if process.returncode == USER_ERROR and sentences:
            raise StageError(f'{sentences[-1]} (of: {" ".join(command[2:])})')
        print(''.join(tail), file=sys.stderr, flush=True)
        raise StageError(
            f'{" ".join(command[2:])} ended with exit code {process.returncode}; its last lines are above, the rest in the logs in {folder}.'
        )


def slug(label: str) -> str:
    """A row's label as the name of a folder."""
    return re.sub(r'[^a-z0-9]+', '_', label.lower())


def scalars(folder: Path) -> List[dict]:
    """All scalar records that training in ``folder`` wrote, in order of time."""
    files = sorted(folder.glob('*/vis_data/scalars.json')) or sorted(folder.glob('*/vis_data/[0-9]*.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]


def detector_ap(folder: Path) -> dict:
    """COCO AP in percent from the last evaluation in ``folder``.

    Raises:
        StageError: if nothing was evaluated there.
    """
    evaluated = [record for record in scalars(folder) if AP_KEYS['box AP'] in record]
    if not evaluated:
        raise StageError(f'no COCO AP among the scalars in {folder}: the detector was not evaluated.')
    return {name: round(100 * evaluated[-1][key], 2) for name, key in AP_KEYS.items() if key in evaluated[-1]}


def newest_export(folder: Path) -> Path:
    """The ``*_backbone.pth`` of the last checkpoint in ``folder``."""
    exports = sorted(folder.glob('*_backbone.pth'), key=lambda p: int(re.sub(r'\D', '', p.stem)))
    if not exports:
        raise StageError(f'no *_backbone.pth in {folder}: the pretraining wrote no checkpoint.')
    return exports[-1]
