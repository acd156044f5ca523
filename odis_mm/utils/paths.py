"""What can be said of the paths and the length that a command is given; nothing here imports more than Python, so that
a wrong one is refused at once."""

import json
import logging
import os
import re
import shlex
import tempfile
import zipfile
from itertools import count
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Sequence, Tuple

from .errors import (
    AnnotationError,
    CheckpointError,
    ConfigError,
    FolderInUseError,
    MissingFileError,
    nearest,
    printable,
)
from .files import PathLike, parse_json

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# images that people keep and that are not read
_KEPT = 'jfif jpe ppm pgm pbm pnm heic heif avif gif jp2 j2k jxl dcm dng cr2 nef arw exr tga psd'
OTHER_SUFFIXES = tuple(f'.{name}' for name in _KEPT.split())
WORK_DIRS = 'work_dirs'  # folder of all runs for which no other one is named
PREDICTIONS, PICTURES = 'predictions.json', 'vis'  # that odis-mm predict writes: no annotations, and no images
SMALL_JSON = 1 << 24  # bytes: parsed in a tenth of a second
CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.safetensors', '.ckpt')
PRETRAINING_STEPS, DETECTOR_STEPS = 4, 2  # at least: warm-up and decay have some of each
DETECTOR_SIZE = 16  # at least, pixels of the shortest side
_OF_A_RUN = re.compile(r'(epoch|iter|epoch_\d+_iter)_\d+\.pth')  # checkpoints
_PARTS = ('data', 'images', 'img', 'imgs', 'jpegimages', 'train', 'train2017', 'training')  # of a data set's folder


def check_folder(root: PathLike) -> None:
    """Refuse a data folder that is none.

    Raises:
        MissingFileError: there is no such folder.
    """
    if os.path.isfile(root):
        raise MissingFileError(f'{root} is a file where a folder of data is expected: name the folder that it is in.')
    if not os.path.isdir(root):
        raise MissingFileError(f'data folder {root} does not exist.')


def check_data(data: PathLike, images: Optional[PathLike] = None, files: Sequence[Optional[PathLike]] = ()) -> None:
    """Refuse what no command can begin with.

    Args:
        data: Folder of a data set.
        images: Folder of its images, if it is another one.
        files: Annotations, absolute or below ``data``; None is skipped.

    Raises:
        MissingFileError: there is no such folder or file, or neither an image nor a json in the folder.
        AnnotationError: a small json is none.
    """
    check_folder(data)
    if images is not None:
        check_folder(images)
    for file in files:
        if file is not None:
            check_json(find_file(file, data))
    if any(file is not None for file in files):
        return  # they may name images anywhere
    places = [data] if images is None else [data, images]
    if not any(name.lower().endswith((*IMAGE_SUFFIXES, '.json')) for root in places for name in walk_files(root, [])):
        raise MissingFileError(
            f'no image in or below {printable(os.fspath(places[-1]))} (looked for {", ".join(IMAGE_SUFFIXES)}): name '
            'the folder that holds your images.'
        )


def check_json(path: Path) -> None:
    """Refuse a small json that is none; other files are judged where they are read.

    Raises:
        AnnotationError: it is cut off, or of something else.
    """
    if path.suffix.lower() == '.json' and path.stat().st_size <= SMALL_JSON:
        try:
            parse_json(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f'annotation file {path} is not valid JSON ({error}); is it complete?') from None


def find_file(file: PathLike, data: PathLike) -> Path:
    """Return the path of an annotation file that is named as it is or as it lies below a folder.

    Raises:
        MissingFileError: it does not exist.
    """
    found = next((path for path in (Path(file), Path(data, file)) if path.is_file()), None)
    if found is None:
        raise MissingFileError(f'annotation file {file} does not exist, neither as given nor below {data}.')
    return found


def walk_images(folder: PathLike, unread: Optional[List[str]] = None) -> Tuple[List[str], List[str]]:
    """Return the paths of all image files in and below a folder, sorted folder by folder, and the folders left out:
    hidden ones, such as ``.ipynb_checkpoints``, those of runs (``work_dirs``) and predictions, whose pictures nobody
    would train on, those visited before under another name, and those that cannot be read.

    Links to folders are followed, but each real folder is visited once, so that a link to a parent ends. The paths of
    images of kinds that are not read are appended to ``unread``.
    """
    skipped: List[str] = []
    found: List[str] = []
    for name in walk_files(folder, skipped):
        if name.lower().endswith(IMAGE_SUFFIXES):
            found.append(name)
        elif unread is not None and name.lower().endswith(OTHER_SUFFIXES):
            unread.append(name)
    return found, skipped


def walk_files(folder: PathLike, skipped: List[str]) -> Iterator[str]:
    """Yield the paths of all files in and below a folder that are neither hidden nor predictions, as
    :func:`walk_images` looks for images; folders that are left out are appended to ``skipped``."""
    visited = {os.path.realpath(folder)}
    for place, folders, files in os.walk(
        os.fspath(folder), followlinks=True, onerror=lambda error: skipped.append(error.filename)
    ):
        kept = []
        for name in sorted(folders):
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if _left_out(name) or real in visited or (name == PICTURES and PREDICTIONS in files):
                skipped.append(path)
            else:
                visited.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (os.path.join(place, name) for name in sorted(files) if name[0] != '.' and name != PREDICTIONS)


def left_out(folder: PathLike, skipped: Sequence[str], unread: Sequence[str], found: int) -> List[Tuple[int, str]]:
    """Return levels and lines for the log about what :func:`walk_images` left out."""
    lines, name = [], printable(os.fspath(folder))
    if skipped:
        first = ', '.join(printable(path) for path in skipped[:3]) + (', ...' if len(skipped) > 3 else '')
        why = f'hidden, of runs ({WORK_DIRS}), of predictions, visited before under another name, or not readable'
        lines.append((logging.INFO, f'{name}: {len(skipped)} folders left out ({first}): {why}'))
    if unread:
        kinds = ', '.join(sorted({os.path.splitext(path)[1].lower() for path in unread}))
        line = (
            f'{name}: {found} images found, {len(unread)} files of kinds that are not read left out ({kinds}); convert '
            'them to JPEG, PNG or TIFF to use them'
        )
        lines.append((logging.WARNING, line))
    return lines


def of_other_images(source: PathLike, names: Sequence[str], folder: PathLike) -> Optional[str]:
    """Return the sentence for annotations of other images than those of a folder: no image in or below it has the name
    (endings apart) of one that they list. None where that does not show: a name is there, or the folder has no image,
    or a single image is listed, which may be lost.
    """
    own = walk_images(folder)[0]
    there = {Path(path).stem for path in own}
    if len(names) < 2 or not own or any(Path(name.replace('\\', '/')).stem in there for name in names):
        return None
    where, example = printable(os.path.normpath(folder)), printable(os.path.relpath(own[0], folder))
    return (
        f'none of the {len(names)} file names of {printable(os.fspath(source))} ({printable(names[0])}, ...) is in or '
        f'below {where} ({example}, ...): these are probably annotations of other images; name those of these images, '
        'or the folder of its images.'
    )


def find_images(sources: Sequence[PathLike], lines: Optional[List[Tuple[int, str]]] = None) -> List[Path]:
    """Return the image files that are named, and those in and below folders that are named, each once; what
    :func:`left_out` tells of these is appended to ``lines``.

    Raises:
        MissingFileError: a source does not exist, or a folder holds no image.
    """
    found: List[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            unread: List[str] = []
            inside, skipped = walk_images(source, unread)
            told = left_out(source, skipped, unread, len(inside))
            if not inside:
                more = ''.join(f'; {line}' for _, line in told)
                raise MissingFileError(f'no image in or below {source} (looked for {", ".join(IMAGE_SUFFIXES)}){more}.')
            found += sorted(map(Path, inside))
            if lines is not None:
                lines += told
        elif source.is_file():
            found.append(source)
        else:
            raise MissingFileError(f'there is no file or folder {source}.')
    return list(dict.fromkeys(found))


def check_checkpoint(path: PathLike) -> Path:
    """Return the path of a checkpoint.

    Raises:
        CheckpointError: it is missing, a folder, a Python file, empty, or, by its beginning and end, truncated or no
            checkpoint; what lies between is seen when it is read.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path} is a folder: name the file in it, such as epoch_N_backbone.pth.')
    if not path.is_file():
        raise CheckpointError(
            f'checkpoint {path} does not exist; check the path (it is relative to {Path.cwd()} unless absolute).'
        )
    if path.suffix == '.py':
        raise CheckpointError(f'checkpoint {path} is a Python file: name the .pth beside it.')
    if path.stat().st_size == 0:
        raise CheckpointError(
            f'checkpoint {path} is empty (0 bytes): its writing was interrupted; take an earlier one.'
        )
    try:
        with open(path, 'rb') as file:
            _check_ends(file, path)
    except PermissionError as error:
        raise CheckpointError(f'checkpoint {path} cannot be read: no permission.') from error
    return path


def _check_ends(file: BinaryIO, path: Path) -> None:
    wrong, start = f'checkpoint {path} is truncated or no checkpoint: ', file.read(8)
    if path.suffix == '.safetensors':  # the length of a json, the json, then the tensors at the places that it tells
        length, size = int.from_bytes(start, 'little'), path.stat().st_size
        try:
            header = json.loads(file.read(min(length, size)))
            ends = [entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__']
            told = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
            raise CheckpointError(f'{wrong}it does not begin as safetensors do.') from None
        if size != told:
            raise CheckpointError(f'{wrong}it has {size} bytes and tells of {told}; fetch it again.')
    elif start.startswith(b'PK'):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            raise CheckpointError(f'{wrong}its end is missing; fetch it again, or take an earlier one.') from None
        if not any(name.endswith('data.pkl') for name in names):
            raise CheckpointError(f'{wrong}it is a zip archive of something else ({", ".join(names[:3])}).')
    elif not start.startswith(b'\x80'):  # of the pickles that torch before 1.6 wrote
        raise CheckpointError(f'{wrong}its contents are not those of torch.save.')


def config_root() -> Path:
    """Return where the shipped configs lie: in the installed wheel, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def shipped_configs() -> Dict[str, Path]:
    """Return name (``odis_vits_coco``, ``mask_rcnn/...``) to path of every recipe that comes with the package."""
    root = config_root()
    paths = [path for path in sorted(root.rglob('*.py')) if '_base_' not in path.parts]
    return {path.relative_to(root).with_suffix('').as_posix(): path for path in paths}


def find_config(name: PathLike) -> Path:
    """Return the path of a config that is named by its path, or of a shipped one by its name (the last part will do).

    Raises:
        ConfigError: there is no such config, or it is a checkpoint.
    """
    check_config_name(name)
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    wanted = Path(os.fspath(name).removesuffix('.py')).as_posix()
    found = [path for key, path in shipped.items() if wanted in (key, key.rpartition('/')[2])]
    if not found and Path(name).is_dir():
        inside = ''.join(f', such as {path}' for path in sorted(Path(name).glob('*.py'))[:1])
        raise ConfigError(f'{os.fspath(name)} is a folder where a config is expected: name the file in it{inside}.')
    if not found:
        hint = nearest(wanted, [*shipped, *(key.rpartition('/')[2] for key in shipped)]) or f' ({", ".join(shipped)})'
        raise ConfigError(f'no config {os.fspath(name)!r}: it is neither a file nor a shipped recipe{hint}')
    return found[0]


def detector_name(name: str) -> str:
    """Return the name of a detector's config; ``mask-rcnn`` and ``faster-rcnn`` are those for small data."""
    return f'{name}_small' if name in ('mask-rcnn', 'faster-rcnn') else name


def check_config_name(name: PathLike) -> None:
    """Refuse a checkpoint in the place of a config.

    Raises:
        ConfigError: it has the name of a checkpoint.
    """
    if Path(name).suffix in CHECKPOINT_SUFFIXES:
        raise ConfigError(
            f'{name} is a checkpoint where a config is expected: give the config first, and the file by --resume, '
            '--init or as second argument of test.'
        )


def check_out(out: PathLike, folder: bool = False, argument: str = '--out') -> None:
    """Refuse what ``--out`` or another ``argument`` names where it cannot be written; nothing is created.

    Raises:
        ConfigError: a folder is in the place of a file, or the other way round, or the folder above takes no files.
    """
    if os.path.exists(out) and os.path.isdir(out) != folder:
        kinds = ('file', 'folder') if folder else ('folder', 'file')
        raise ConfigError(f'{argument} {out} is a {kinds[0]}: name a {kinds[1]} to write.')
    place = Path(os.path.abspath(out))
    near = next(path for path in (place, *place.parents)[not folder :] if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=near):
            pass
    except OSError as error:
        why = error.strerror if near.is_dir() else 'it is no folder'
        raise ConfigError(f'{argument} {out} cannot be written below {near} ({why}): name another place.') from error


def check_output(out: PathLike, sources: Sequence[PathLike]) -> None:
    """Refuse a folder of predictions that holds others, lies where the images are read from, or cannot be written.

    Args:
        out: The folder; it need not exist.
        sources: Files and folders of images.

    Raises:
        FolderInUseError: it has a ``predictions.json``.
        ConfigError: as :func:`check_outside` and :func:`check_out`.
    """
    if Path(out, PREDICTIONS).exists():
        raise FolderInUseError(f'{out} holds the predictions of an earlier run: name another folder with --out.')
    check_outside(out, sources)
    check_out(out, folder=True)


def check_outside(out: PathLike, sources: Sequence[PathLike]) -> None:
    """Refuse a place for pictures where :func:`walk_images` would find them.

    Args:
        out: Their folder, or one of them.
        sources: Files and folders of images.

    Raises:
        ConfigError: it is one of the folders, or lies in one and not in one that is left out there.
    """
    for source in sources:
        if is_searched(out, source):
            raise ConfigError(
                f'the pictures of --out {out} would lie in {source}, and the next run would take them for images: name '
                f'a place outside it, or below a folder {WORK_DIRS}.'
            )


def check_work_dir(work_dir: PathLike, data: PathLike, argument: str = '--work-dir') -> None:
    """Refuse a folder of runs where a data set's images and annotations are looked for: a later command would take the
    pictures and annotations that runs leave for those of the data.

    Raises:
        ConfigError: it is one, or lies in one and not in one that is left out there.
    """
    if is_searched(work_dir, data):
        raise ConfigError(
            f'{work_dir} lies in {data}, and what runs write there would be taken for images and annotations of the '
            f'data: take another {argument}, or one below {Path(data, WORK_DIRS)}, which is not searched.'
        )


def is_searched(place: PathLike, folder: PathLike) -> bool:
    """Return whether :func:`walk_images` of a folder of images looks at a place, which need not exist."""
    inner, outer = Path(os.path.realpath(place)), Path(os.path.realpath(folder))
    return outer.is_dir() and inner.is_relative_to(outer) and not any(map(_left_out, inner.relative_to(outer).parts))


def _left_out(name: str) -> bool:
    """Whether folders of a name are not searched for images."""
    return name.startswith('.') or name == WORK_DIRS


def check_threshold(score: float) -> None:
    """Refuse a least score outside 0..1.

    Raises:
        ConfigError: it is.
    """
    if not 0 <= score <= 1:  # nor NaN
        raise ConfigError(f'the threshold of scores is {score:g}: set a number from 0 to 1.')


def find_detector(run: PathLike, checkpoint: Optional[PathLike]) -> Tuple[Path, Path]:
    """Return the config and the checkpoint of a detector.

    Args:
        run: The config, or the work dir of the training, which holds it.
        checkpoint: None: the newest one beside the config.

    Raises:
        ConfigError: ``run`` is a checkpoint, or holds no config, or several, or that of a pretraining, or there is no
            such config.
        MissingFileError: there is no checkpoint beside it.
        CheckpointError: see :func:`check_checkpoint`.
    """
    run = Path(run)
    if run.suffix in CHECKPOINT_SUFFIXES:
        raise ConfigError(
            f'{run} is a checkpoint: name the config of a detector first, or the work dir of its training. A '
            f'pretrained backbone is no detector yet: odis-mm finetune --data ANNOTATED --init {shlex.quote(str(run))}.'
        )
    config = run
    if run.is_dir():
        configs = sorted(run.glob('*.py'))
        if len(configs) != 1:
            raise ConfigError(f'{run} holds {len(configs)} configs (*.py): name the one of the detector.')
        config = configs[0]
    if config.name == 'pretrain.py':  # as odis-mm pretrain names it
        raise ConfigError(
            f'{config} is the config of a pretraining, whose backbone is no detector yet: odis-mm finetune --data '
            f'ANNOTATED --init {shlex.quote(str(config.parent / "epoch_N_backbone.pth"))}.'
        )
    if checkpoint is not None and str(checkpoint).endswith('_backbone.pth'):  # as pretrainings name their exports
        raise CheckpointError(
            f'{checkpoint} is a pretrained backbone, no detector: take the iter_N.pth or epoch_N.pth of the training '
            f'of {config}, or name no checkpoint for the newest of them.'
        )
    if checkpoint is None:
        if not config.is_file():
            raise MissingFileError(f'there is no config or work dir {run}: name that of the training of a detector.')
        folder = config.parent
        files = [path for path in folder.glob('*.pth') if _OF_A_RUN.fullmatch(path.name)]
        if not files:
            raise MissingFileError(f'{folder} holds no checkpoint of a detector (iter_N.pth, epoch_N.pth): name one.')
        checkpoint = max(files, key=lambda p: p.stat().st_mtime)
    return find_config(config), check_checkpoint(checkpoint)


def default_work_dir(command: str, data: PathLike) -> Path:
    """Return the folder that a command writes to if none is named: ``work_dirs/COMMAND/NAME``.

    NAME is that of the data's folder; where many data sets have a folder of that name, the one above comes before it
    (``cells/images``: ``cells_images``).
    """
    folder = Path(os.path.abspath(data))
    name = folder.name or 'data'
    if name.lower() in _PARTS and folder.parent.name:
        name = f'{folder.parent.name}_{name}'
    return Path(WORK_DIRS, command, name)


def check_steps(steps: Optional[int], least: int) -> None:
    """Refuse a length that is too short for the schedule.

    Raises:
        ConfigError: fewer steps than ``least``; None is the default length.
    """
    if steps is not None and steps < least:
        raise ConfigError(f'steps must be {least} or more, got {steps}.')


def holds_run(work_dir: Path) -> bool:
    """Return whether there are checkpoints of a run in a folder."""
    return any(_OF_A_RUN.fullmatch(path.name) for path in work_dir.glob('*.pth'))


def check_resumable(work_dir: Path) -> None:
    """Refuse to continue what is not there.

    Raises:
        ConfigError: no run has left a checkpoint in the folder.
    """
    if not holds_run(work_dir) and not (work_dir / 'last_checkpoint').is_file():
        raise ConfigError(
            f'--resume: there is no checkpoint in {work_dir}; leave --resume out to begin at the beginning, or name '
            'the folder of the run with --work-dir.'
        )


def check_unused(work_dir: Path, data: PathLike) -> None:
    """Refuse to begin a run in the folder of another one, or among the data.

    Raises:
        ConfigError: there are checkpoints in it; see also :func:`check_work_dir`.
    """
    check_work_dir(work_dir, data)
    if holds_run(work_dir):
        free = next(path for n in count(2) if not holds_run(path := work_dir.with_name(f'{work_dir.name}_{n}')))
        raise ConfigError(
            f'{work_dir} holds checkpoints of a run: for another one add --work-dir {shlex.quote(str(free))}; to '
            'continue that one, add --resume (without --init).'
        )
