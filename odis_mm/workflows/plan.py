"""The plan of a comparison: which starts, on which data, with how many labels, seeds and iterations. A YAML file."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import yaml

from ..config import config_root, nearest
from ..utils.errors import ConfigError, MissingFileError
from ..utils.files import PathLike
from ..utils.paths import DETECTOR_STEPS, PRETRAINING_STEPS

DUPLICATES = ('refuse', 'drop', 'allow')


@dataclass(frozen=True)
class Data:
    """Where images and annotations are.

    Attributes:
        root: Folder of a data set that :func:`~odis_mm.datasets.layout.find_splits` recognises; relative to the plan.
        demo: Number of training images of the rendered demo set, in place of ``root``.
        train, val, test: COCO-style json, below ``root``, where they are not found by themselves.
        images: Folder of all images, below ``root``, where it is not found by itself.
        unlabelled: Folder of further images for pretraining.
        held_out: Share of the training images that is held out if there is no val split.
        duplicates: What to do with images that are evaluated and trained on: refuse, drop (from the training) or allow.
    """

    root: Optional[str] = None
    demo: Optional[int] = None
    train: Optional[str] = None
    val: Optional[str] = None
    test: Optional[str] = None
    images: Optional[str] = None
    unlabelled: Optional[str] = None
    held_out: float = 0.25
    duplicates: str = 'refuse'


@dataclass(frozen=True)
class Step:
    """Part of a start: a file, or a pretraining.

    Attributes:
        file: Weights to start from.
        recipe: Config of a pretraining, by name or path.
        options: Its ``--cfg-options``.
        boxes: Whether it is told the boxes of the training images (never their classes). Methods that use none are not
            told any.
        share: Of the start's budget.
    """

    file: Optional[str] = None
    recipe: Optional[str] = None
    options: Dict[str, Any] = field(default_factory=dict)
    boxes: bool = True
    share: float = 1.0


@dataclass(frozen=True)
class Start:
    """Where a detector's backbone comes from: steps one after another; none: random weights.

    Attributes:
        name: Row of the tables.
        steps: See :class:`Step`.
        detector: ``--cfg-options`` of its detectors.
    """

    name: str
    steps: Tuple[Step, ...] = ()
    detector: Dict[str, Any] = field(default_factory=dict)

    @property
    def recipes(self) -> List[Step]:
        return [step for step in self.steps if step.recipe]


@dataclass(frozen=True)
class Detector:
    """The detector, the same for all starts.

    Attributes:
        config: Name or path; None: Mask R-CNN if every object has a segmentation, else Faster R-CNN, both of a size for
            small data.
        size: Shortest side of the images in pixels; None: the config's, of a small detector 128 or more, as its objects
            need.
        iterations, batch: Length.
        longer: The detector of the reference is also trained for so many times the iterations, with the most labels and
            one seed, to tell whether a gain is more than a shorter training; 0: not.
        options: ``--cfg-options``.
    """

    config: Optional[str] = None
    size: Optional[int] = None
    iterations: int = 300
    batch: Optional[int] = None
    longer: int = 0
    options: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pretraining:
    """Budget of each start: iterations, or minutes (turned into iterations by the speed that is measured first).

    Attributes:
        lengths: Shares of it at which a checkpoint is fine-tuned as well, to see AP against length; empty: the end
            alone.
    """

    iterations: Optional[int] = None
    minutes: Optional[float] = None
    lengths: Tuple[float, ...] = ()


@dataclass(frozen=True)
class Seeds:
    """Numbers of seeds. A detector seed also draws the labelled images, nested over the label fractions."""

    pretraining: int = 2
    detector: int = 2


@dataclass(frozen=True)
class Tuning:
    """Random search, the same number of trials for every start, over the knobs that its config lists under ``tunable``.

    Attributes:
        trials: 0: none.
        labels: Percent of the labels; None: the plan's smallest.
        share: Of the pretraining budget that a trial gets.
    """

    trials: int = 0
    labels: Optional[float] = None
    share: float = 1.0


@dataclass(frozen=True)
class Plan:
    """See the fields' classes.

    Attributes:
        name: Heading of the report.
        labels: Percentages of the training images whose labels the detector gets.
        evaluate: 'val' or 'test': what the tables are of; None: val, but test if there is one and val served for
            tuning.
        measures: Whether frozen features are measured, too.
        pictures: Images on which detections are shown side by side.
        baseline: Name of the start that the others are compared with; None: the one of random weights, else the first.
    """

    data: Data
    starts: Tuple[Start, ...]
    name: str = 'comparison'
    detector: Detector = Detector()
    pretraining: Pretraining = Pretraining(iterations=600)
    labels: Tuple[float, ...] = (100.0,)
    seeds: Seeds = Seeds()
    tuning: Tuning = Tuning()
    evaluate: Optional[str] = None
    measures: bool = True
    pictures: int = 4
    baseline: Optional[str] = None

    def start(self, name: str) -> Start:
        return next(start for start in self.starts if start.name == name)

    @property
    def reference(self) -> str:
        if self.baseline:
            return self.baseline
        return next((start.name for start in self.starts if not start.steps), self.starts[0].name)


def shipped_plans() -> Dict[str, Path]:
    """Name to path of the plans that come with the package."""
    return {path.stem: path for path in sorted((config_root() / 'plans').glob('*.yaml'))}


def load_plan(name: PathLike, changes: Sequence[str] = ()) -> Tuple[Plan, Path]:
    """Read a plan, and return it with the folder that its paths are relative to (for a shipped plan the current one).

    Args:
        name: A path, or the name of a shipped plan.
        changes: ``KEY=VALUE`` texts, such as ``seeds.detector=3``; the value is YAML.

    Raises:
        ConfigError: no such plan, no YAML, an unknown key or a value of the wrong kind; the message names it.
    """
    path, folder = Path(name), Path(name).parent
    if path.is_dir() and str(name) not in shipped_plans():
        raise ConfigError(f'{name} is a folder and no plan: to compare on the images in it, name it by --data.')
    if not path.is_file():
        plans = shipped_plans()
        if str(name) not in plans:
            hint = nearest(str(name), plans) or f' ({", ".join(plans)})'
            raise ConfigError(f'no plan {str(name)!r}: it is neither a file nor a plan that comes with odis_mm{hint}')
        path, folder = plans[str(name)], Path()
    try:
        content = yaml.safe_load(path.read_text())
        twice = _twice(yaml.compose(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not YAML: {" ".join(str(error).split())}.') from error
    if not isinstance(content, dict):
        raise ConfigError(f'{path} is not a plan: it holds no keys such as data and starts.')
    if twice:  # of which YAML takes the last one without a word
        raise ConfigError(f'{path} has the key {twice[0]!r} twice: give each start, or other key, a name of its own.')
    for change in changes:
        _change(content, change)
    return parse_plan(content, str(path)), folder


def _twice(node: Any) -> List[str]:
    """Keys that are there twice in a mapping of YAML, or in one inside it."""
    if not isinstance(node, yaml.CollectionNode):
        return []
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
    names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
    return [name for name in names if names.count(name) > 1] + [name for _, item in pairs for name in _twice(item)]


def parse_plan(content: Dict[str, Any], where: str = 'plan') -> Plan:
    """Return the plan that a dict describes.

    Raises:
        ConfigError: see :func:`load_plan`.
    """
    content = dict(content)
    if not isinstance(content.get('starts'), dict) or not content['starts']:
        raise ConfigError(f'{where}: "starts" must name at least one start, such as random: {{}}.')
    starts = tuple(_start(str(name), value, where) for name, value in content.pop('starts').items())
    for key in ('labels',):
        if key in content and not isinstance(content[key], list):
            content[key] = [content[key]]
    plan = _build(Plan, {**content, 'starts': starts}, where)
    _check(plan, where)
    return plan


def changed_plan(plan: Plan, changes: Sequence[str], where: str = 'plan') -> Plan:
    """Return a plan with ``KEY=VALUE`` texts applied.

    Raises:
        ConfigError: see :func:`load_plan`.
    """
    content = yaml.safe_load(dump_plan(plan))
    for change in changes:
        _change(content, change)
    return parse_plan(content, where)


def dump_plan(plan: Plan) -> str:
    """The plan as YAML, defaults left out."""
    content = _without_defaults(plan)
    content['starts'] = {start.name: _dump_start(start) for start in plan.starts}
    order = ['name', 'data', 'starts']
    content = {key: content[key] for key in [*order, *(k for k in content if k not in order)] if key in content}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _dump_start(start: Start) -> dict:
    steps = [_without_defaults(step) for step in start.steps]
    parts = steps[0] if len(steps) == 1 else dict(chain=steps) if steps else {}
    return {**parts, **(dict(detector=dict(start.detector)) if start.detector else {})}


def _without_defaults(node: Any) -> Any:
    if not dataclasses.is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    found = {}
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if value != default:
            found[f.name] = _without_defaults(value)
    return found


def _start(name: str, value: Any, where: str) -> Start:
    value = {} if value is None else value
    place = f'{where}: starts.{name}'
    if not isinstance(value, dict):
        raise ConfigError(f'{place} must be a mapping: {{}} for random weights, or recipe, file or chain.')
    detector = {} if value.get('detector') is None else value['detector']
    if not isinstance(detector, dict):
        raise ConfigError(f'{place}.detector must be a mapping of options of its detectors, not {detector!r}.')
    rest = {key: item for key, item in value.items() if key != 'detector'}
    chain = rest.pop('chain', None)
    if chain is not None and (rest or not chain or not isinstance(chain, list)):
        raise ConfigError(f'{place}: a chain is a list of steps and stands alone.')
    steps = chain if chain is not None else [rest] if rest else []
    built = tuple(_build(Step, step, f'{place}') for step in steps)
    for i, step in enumerate(built):
        if bool(step.file) == bool(step.recipe):
            raise ConfigError(f'{place}: each step has either a recipe or a file.')
        if step.file and i:
            raise ConfigError(f'{place}: a file can only be the first step of a chain.')
    return Start(name, built, dict(detector))


def _build(cls: type, content: Any, where: str) -> Any:
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f'{where} must be a mapping with the keys {", ".join(f.name for f in dataclasses.fields(cls))}.'
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in content.items():
        if key not in fields:
            raise ConfigError(
                f'{where} has no key {str(key)!r}{nearest(str(key), fields) or "; its keys are " + ", ".join(fields)}'
            )
        values[key] = _convert(value, fields[key].type, f'{where}.{key}' if ': ' in where else f'{where}: {key}')
    try:
        return cls(**values)
    except TypeError as error:
        missing = str(error).rpartition(': ')[2]
        raise ConfigError(f'{where} lacks {missing}.') from error


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A value of YAML as the type that a field asks for."""
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, where)
    if getattr(kind, '__origin__', None) is Union:
        return None if value is None else _convert(value, kind.__args__[0], where)
    if getattr(kind, '__origin__', None) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{where} must be a list, not {value!r}.')
        return tuple(_convert(item, kind.__args__[0], where) for item in value)
    if getattr(kind, '__origin__', None) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f'{where} must be a mapping, not {value!r}.')
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, os.PathLike):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false'}
        raise ConfigError(f'{where} must be {words.get(kind, kind)}, not {value!r}.')
    return value


def _change(content: dict, change: str) -> None:
    key, equals, text = change.partition('=')
    if not equals or not key:
        raise ConfigError(f'--set {change!r} is not of the form KEY=VALUE.')
    parts, node = key.split('.'), content
    for part in parts[:-1]:
        below = node.setdefault(part, {})
        if below is None:
            below = node[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f'--set {change}: {part} is {below!r} and has no key {parts[-1]!r}.')
        node = below
    try:
        node[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f'--set {change!r}: the value is not YAML.') from error
    if key in ('pretraining.iterations', 'pretraining.minutes'):  # a plan has one of them
        node.pop({'iterations': 'minutes', 'minutes': 'iterations'}[parts[-1]], None)


def _check(plan: Plan, where: str) -> None:
    def refuse(condition: bool, text: str) -> None:
        if condition:
            raise ConfigError(f'{where}: {text}')

    data, budget = plan.data, plan.pretraining
    refuse(
        (data.root is None) == (data.demo is None) or (data.demo is not None and data.demo < 1),
        'data needs a root, or a number of demo images.',
    )
    refuse(data.duplicates not in DUPLICATES, f'data.duplicates must be one of {", ".join(DUPLICATES)}.')
    refuse(not 0 < data.held_out < 1, 'data.held_out must be between 0 and 1.')
    refuse(
        any(start.recipes for start in plan.starts) and (budget.iterations is None) == (budget.minutes is None),
        'pretraining needs either iterations or minutes, the same for all starts.',
    )
    refuse(
        budget.iterations is not None and budget.iterations < PRETRAINING_STEPS,
        f'pretraining.iterations must be {PRETRAINING_STEPS} or more.',
    )
    refuse(budget.minutes is not None and not budget.minutes > 0, 'pretraining.minutes must be above 0.')
    refuse(
        any(not step.share > 0 for start in plan.starts for step in start.steps) or not plan.tuning.share > 0,
        'a share (of a step of a chain, tuning.share) must be above 0.',
    )
    refuse(any(not 0 < share <= 1 for share in budget.lengths), 'pretraining.lengths are shares between 0 and 1.')
    refuse(
        not plan.labels or any(not 0 < p <= 100 for p in plan.labels), 'labels are percentages above 0, at most 100.'
    )
    refuse(min(plan.seeds.pretraining, plan.seeds.detector) < 1, 'seeds must be 1 or more.')
    refuse(min(plan.tuning.trials, plan.pictures) < 0, 'tuning.trials and pictures must be 0 or more.')
    refuse(plan.detector.iterations < DETECTOR_STEPS, f'detector.iterations must be {DETECTOR_STEPS} or more.')
    refuse(plan.detector.longer < 0 or plan.detector.longer == 1, 'detector.longer must be 0, or 2 or more.')
    refuse(plan.evaluate not in (None, 'val', 'test'), 'evaluate must be val or test.')
    names = [slug(start.name) for start in plan.starts]
    alike = [start.name for start, name in zip(plan.starts, names) if not name or names.count(name) > 1]
    refuse(
        bool(alike),
        f'the names of the starts must differ in letters (a to z) and digits: rename {" or ".join(map(repr, alike))} '
        '(of --init and --recipes: the files).',
    )
    alike = [
        name
        for first in plan.starts
        for seed in range(plan.seeds.pretraining if first.recipes else 0)
        for second in plan.starts
        if not second.recipes and slug(second.name) == f'{slug(first.name)}_p{seed}'
        for name in (first.name, second.name)
    ]
    refuse(bool(alike), f'runs of the starts {" and ".join(map(repr, alike[:2]))} have one name: rename one of them.')
    refuse(
        plan.baseline is not None and plan.baseline not in [start.name for start in plan.starts],
        f'baseline {plan.baseline!r} is no start.',
    )


def select_starts(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan with these starts and its reference alone; names in any case.

    Raises:
        ConfigError: a name that no start has.
    """
    known = {start.name.lower(): start.name for start in plan.starts}
    for name in names:
        if name.lower() not in known:
            raise ConfigError(
                f'there is no start {name!r} in the plan{nearest(name, known) or ": " + ", ".join(known)}'
            )
    wanted = {known[name.lower()] for name in names} | {plan.reference}
    return dataclasses.replace(plan, starts=tuple(start for start in plan.starts if start.name in wanted))


def resolve(path: str, folder: Path) -> Path:
    """A path of a plan, absolute.

    Raises:
        MissingFileError: there is nothing.
    """
    found = (folder / Path(path).expanduser()).resolve()
    if not found.exists():
        raise MissingFileError(f'{found}, which the plan names, does not exist.')
    return found


def slug(label: str) -> str:
    """A label as part of a folder's name."""
    return '_'.join(''.join(c if c.isascii() and c.isalnum() else ' ' for c in label.lower()).split())


def as_plain(node: Any) -> Any:
    """Dataclasses and tuples as what json holds."""
    return json.loads(json.dumps(dataclasses.asdict(node) if dataclasses.is_dataclass(node) else node, default=str))
