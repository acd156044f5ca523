"""Which checkpoint a run continues from: the newest one that is whole."""

import os.path as osp
import pickle
import re
import zipfile
from pathlib import Path
from typing import List, Optional, Tuple

import torch

from ..transfer.safe_globals import UnsafeCheckpoint, allow_mmengine_histories
from ..utils.errors import CheckpointError

# epoch_2_iter_300: within the third epoch; a run that is counted in iterations has iter_300 and epoch_0_iter_310
NUMBERED = re.compile(r'(?:epoch_(\d+)(?:_iter_(\d+))?|iter_(\d+))\.pth')
NOTE = 'last_checkpoint'  # the file in which the checkpoint hook names what it wrote last


def damage(path: str) -> Optional[str]:
    """Return what is wrong with the file of a training checkpoint, in words; None if nothing is.

    Every byte is read once and compared with the checksums that ``torch.save`` stores beside each tensor, because
    ``torch.load`` does not look at them and takes flipped bits as weights; then the file's directory is read as torch
    reads it. In pieces, at 0.8 to 3 GB/s on a core of an AMD EPYC, busy or not. A file that would run code is whole
    here: loading it refuses, and no other file should silently take its place.
    """
    try:
        if osp.getsize(path) == 0:
            return 'it is empty (0 bytes)'
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() or next(
                (i.filename for i in archive.infolist() if i.external_attr), None
            )  # torch sets none
        if wrong:
            return f'the checksum of its part {wrong} is wrong'
        allow_mmengine_histories()
        torch.load(path, map_location='cpu', weights_only=True, mmap=True)  # tensors stay on the disk
    except (pickle.UnpicklingError, UnsafeCheckpoint):
        return None
    except OSError as error:
        return f'it cannot be read ({error.strerror or error})'
    except Exception as error:  # zipfile and torch have a dozen classes for the ways in which a file can be broken
        return f'it is truncated or no checkpoint ({(str(error) or type(error).__name__).splitlines()[0][:200]})'
    return None


def find_checkpoint(work_dir: str) -> Tuple[Optional[str], List[str]]:
    """Return what to continue from: the checkpoint that ``last_checkpoint`` names, or, if that one is missing or
    damaged, the newest whole one.

    Args:
        work_dir: Folder of a run; it may have been moved.

    Returns:
        The path, or None in a folder without checkpoints; warnings, one for each checkpoint skipped and one that
        names what is taken instead.

    Raises:
        CheckpointError: there was something to continue from, and all of it is missing or damaged.
    """
    note, passed, text, named = Path(work_dir, NOTE), [], '', None
    if note.is_file():
        text = note.read_text(encoding='utf-8', errors='replace').strip()
        here = osp.join(
            work_dir, osp.basename(text)
        )  # before the path in the note, which is the original's in a copied folder
        named = next((path for path in (here, text) if text and osp.isfile(path)), None)
        if named is None:
            passed.append(f'{note} names {text[:200]!r}, which is no file' if text else f'{note} is empty')
    others = _newest_first(osp.dirname(named)) if named else _newest_first(work_dir) or _newest_first(osp.dirname(text))
    for path in [named] * bool(named) + [path for path in others if not named or not osp.samefile(path, named)]:
        wrong = damage(path)
        if wrong is None:
            return path, passed + [f'--resume takes the newest whole checkpoint instead: {path}'] * bool(passed)
        passed.append(f'checkpoint {path} is damaged: {wrong}')
    if passed:
        raise CheckpointError(
            f'--resume: there is no whole checkpoint in {work_dir} ({"; ".join(passed)}): put a copy back and name it '
            'with --resume FILE, or move these files away and start at the beginning.'
        )
    return None, []


def _newest_first(folder: str) -> List[str]:
    found = [
        (int(m[1] or 0), int(m[2] or m[3] or 0), str(p))
        for p in Path(folder).glob('*.pth')
        if (m := NUMBERED.fullmatch(p.name))
    ]
    return [path for *_, path in sorted(found, reverse=True)] if folder else []
