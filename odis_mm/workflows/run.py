"""Carry a plan out, or make one for a user's data that fits the time."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from mmengine.logging import MMLogger

from ..config import shipped_configs
from ..datasets.layout import read_coco
from ..utils.errors import ConfigError
from ..utils.files import PathLike, atomic_write_text
from .compare import Comparison, resolve_files
from .data import prepare
from .outcome import Outcome, headline, recommendation
from .plan import (
    Data,
    Plan,
    Pretraining,
    Seeds,
    Start,
    Step,
    changed_plan,
    dump_plan,
    load_plan,
    resolve,
    select_starts,
    slug,
)
from .report import write_report
from .stages import Stages

RANDOM = 'random weights'
SMALL = {'ODIS': 'odis_small', 'ALFM': 'alfm_small', 'GTSA': 'gtsa_small', 'iBOT': 'ibot_small'}  # tried in this order
LABELS = (1.0, 10.0, 100.0)
FEWEST = 8  # labelled images below which a fraction is not tried
MEASURES = 0.5  # minutes: frozen measures of a start
SHORTEST = 1.5  # minutes: a pretraining below that is not worth a table
RESERVE = 0.85  # share of the time that is planned with; the rest is for the report and for what was measured too well
# how much of a comparison to give up for time, the dearest first: pretrainings, seeds of both kinds, amounts of labels,
# detector iterations, and how many times as long the reference is trained for control
DESIGNS = (
    (4, 2, 2, 3, 300, 4),
    (3, 2, 2, 2, 300, 4),
    (3, 2, 2, 2, 200, 4),
    (2, 2, 2, 2, 200, 4),
    (2, 2, 2, 1, 200, 4),
    (1, 2, 2, 1, 200, 4),
    (1, 2, 2, 1, 120, 4),
    (1, 1, 2, 1, 120, 0),
    (1, 1, 1, 1, 120, 0),
)


def compare(
    plan: PathLike,
    *,
    starts: Optional[Sequence[str]] = None,
    work_dir: Optional[PathLike] = None,
    changes: Sequence[str] = (),
    jobs: Optional[int] = None,
    prefix: Sequence[str] = (),
    dry_run: bool = False,
    duplicates: Optional[str] = None,
    command: str = '',
) -> Optional[Outcome]:
    """Carry a plan out; a second call goes on where the first one stopped.

    Args:
        plan: A YAML file, or the name of a shipped plan.
        starts: Of the plan, these and its reference alone.
        work_dir: Stages, data and report; None: ``work_dirs/compare/NAME``.
        changes: ``KEY=VALUE`` texts that change the plan.
        jobs: Stages at a time.
        prefix: Words before each command, such as those of ``srun``.
        dry_run: Measure the speed, by trainings of some steps, and tell how long it takes, then stop; returns None.
        duplicates: In place of the plan's ``data.duplicates``.
        command: For the report.

    Raises:
        ConfigError: the plan cannot be used; LeakError: evaluated images are among the training images.
        StageError: a stage failed.
    """
    # what data sets tell of themselves is in the logs of the stages
    MMLogger.get_current_instance().setLevel('WARNING')
    found, folder = load_plan(plan, changes)
    if starts:
        found = select_starts(found, starts)
    out = Path(work_dir or Path('work_dirs/compare') / (slug(found.name) or 'plan'))
    return _carry_out(found, folder, out, jobs, prefix, dry_run, duplicates, command)


def compare_data(
    data: PathLike,
    minutes: float = 60,
    *,
    recipes: Optional[Sequence[str]] = None,
    files: Sequence[str] = (),
    work_dir: Optional[PathLike] = None,
    changes: Sequence[str] = (),
    jobs: Optional[int] = None,
    prefix: Sequence[str] = (),
    dry_run: bool = False,
    duplicates: Optional[str] = None,
    command: str = '',
) -> Optional[Outcome]:
    """Write a plan for a data set that fits the time on this machine, by measured speeds, to ``work_dir/plan.yaml``,
    and carry it out.

    Args:
        data: Folder of annotated images: COCO style, YOLO, Pascal VOC, ...
        minutes: For everything.
        recipes: Pretrainings to compare; None: those for small data, as many as fit.
        files: Weights to compare as they are.

    The other arguments are those of :func:`compare`.

    Raises:
        ConfigError: no annotations, too little time for any comparison, or a work dir that holds the plan of another
            command.
    """
    if not minutes > 0:
        raise ConfigError(f'minutes must be above 0, got {minutes:g}.')
    MMLogger.get_current_instance().setLevel('WARNING')
    root = Path(data).resolve()
    out = Path(work_dir or Path('work_dirs/compare') / (slug(root.name) or 'data'))
    mark = (
        f'# made by: odis-mm compare --data {root} --minutes {minutes:g}, recipes {recipes}, files '
        f'{list(files)}, {list(changes)}'
    )
    path = out / 'plan.yaml'
    if path.is_file():
        if path.read_text().splitlines()[0] != mark:
            raise ConfigError(
                f'{path} was made by another command ({path.read_text().splitlines()[0].lstrip("# ")}): continue it '
                f'with `odis-mm compare {shlex.quote(str(path))} --work-dir {shlex.quote(str(out))}`, or take another '
                '--work-dir.'
            )
        found, folder = load_plan(path)
        return _carry_out(found, folder, out, jobs, prefix, dry_run, duplicates, command)
    plan = draft(root, recipes, files, duplicates)
    # before anything is measured or written: a wrong change is refused, and speeds are those of the data and detector
    # that it names
    plan = changed_plan(plan, changes)
    if plan.data.unlabelled:  # the plan lies elsewhere
        extra = str(resolve(plan.data.unlabelled, Path()))
        plan = dataclasses.replace(plan, data=dataclasses.replace(plan.data, unlabelled=extra))
    stages = Stages(out, jobs, prefix)
    check_minutes(plan, minutes, stages.jobs)
    prepared = prepare(plan, Path(), out, stages.say)
    labelled = len(read_coco(prepared.subsets[100.0, 0])['images'])  # a fraction is of those with objects
    labels = tuple(p for p in LABELS if p == 100 or labelled * p / 100 >= FEWEST)
    plan = dataclasses.replace(plan, labels=labels)
    stages.say(f'{prepared.images["train"]} training and {prepared.images["val"]} val images')
    comparison = Comparison(plan, prepare(plan, Path(), out, stages.say), stages)
    comparison.measure_speed()
    plan, told = fit(plan, comparison, minutes)
    for change in told:
        stages.say(change)
    out.mkdir(parents=True, exist_ok=True)
    plan = dataclasses.replace(changed_plan(plan, changes, str(path)), data=plan.data)
    atomic_write_text(path, f'{mark}\n{dump_plan(plan)}')
    return _carry_out(plan, out, out, jobs, prefix, dry_run, duplicates, command)


def draft(root: Path, recipes: Optional[Sequence[str]], files: Sequence[str], duplicates: Optional[str]) -> Plan:
    """Return a plan for a data set, before its length is fitted to the time."""
    shipped = shipped_configs()
    if recipes is None:
        chosen = {name: recipe for name, recipe in SMALL.items() if recipe in shipped}
    else:
        chosen = dict(zip(_labels(recipes), recipes))
    files = list(dict.fromkeys(str(Path(file).resolve()) for file in files))
    taken = [slug(name) for name in (RANDOM, *chosen)]
    own = {f'{name} (file)' if slug(name) in taken else name: file for name, file in zip(_labels(files), files)}
    starts = [Start(RANDOM), *(Start(name, (Step(file=file),)) for name, file in own.items())]
    starts += [Start(name, (Step(recipe=recipe),)) for name, recipe in chosen.items()]
    if len(starts) < 2:
        raise ConfigError('nothing to compare: name recipes with --recipes, or weights with --init.')
    return Plan(
        data=Data(root=str(root), duplicates=duplicates or 'refuse'),
        starts=tuple(starts),
        name=root.name,
        labels=LABELS,
        seeds=Seeds(2, 2),
    )


def _labels(paths: Sequence[str]) -> List[str]:
    """The names of files, with their endings where files of one folder differ in that alone, and after those of their
    folders where several folders have the same: exports of two runs often do."""
    labels: List[str] = []
    for path in map(Path, paths):
        alike = [other for other in map(Path, paths) if other.stem == path.stem and other != path]
        own_name = path.name if any(other.parent == path.parent for other in alike) else path.stem
        alike = [other for other in alike if other.parent != path.parent]
        parents = list(zip(reversed(path.parts[:-1]), *(reversed(other.parts[:-1]) for other in alike)))
        depth = next((i + 1 for i, (own, *others) in enumerate(parents) if own not in others), len(parents))
        labels.append(' '.join((*path.parts[-1 - depth : -1], own_name)) if alike else own_name)
    return labels


def check_minutes(plan: Plan, minutes: float, jobs: int) -> None:
    """Refuse a time that is too short whatever the speed of the machine, before that is measured: one pretraining of
    ``SHORTEST``, if there are any, and ``MEASURES`` for each start do not fit.

    Raises:
        ConfigError: it is.
    """
    fixed = sum(not start.recipes for start in plan.starts)
    pretrained = fixed < len(plan.starts)
    least = (MEASURES * (fixed + pretrained) + SHORTEST * pretrained) / (RESERVE * jobs)
    if minutes < least:
        raise ConfigError(
            f'{minutes:g} minutes are too short for any comparison of these starts on any machine, {jobs} stage(s) at '
            f'a time: give it {math.ceil(least)} or more with --minutes, better an hour.'
        )


def fit(plan: Plan, comparison: Comparison, minutes: float) -> Tuple[Plan, List[str]]:
    """The richest design whose estimated time is within ``minutes``; what it is, in lines.

    Raises:
        ConfigError: not even the poorest fits.
    """
    workers, results = comparison.stages.jobs, comparison.stages.result
    images = comparison.data.images['val']

    def seconds(start: Start, iterations: int) -> float:
        speed = results(comparison.detector_probe(start))
        return speed['startup'] + speed['iteration'] * iterations + speed['image'] * images

    fixed = [start for start in plan.starts if not start.recipes]
    pretrained = [start for start in plan.starts if start.recipes]
    budget = RESERVE * minutes * workers
    for count, seeds_p, seeds_d, amounts, iterations, longer in DESIGNS:
        if count > max(len(pretrained), 1) or (not pretrained and seeds_p > 1):
            continue
        labels = plan.labels[-amounts:] if amounts > 1 else plan.labels[-2:-1] or plan.labels
        chosen = pretrained[:count]
        backbones = [*fixed, *chosen * seeds_p]
        detectors = len(backbones) * seeds_d * len(labels)
        spent = sum(seconds(start, iterations) for start in backbones) * seeds_d * len(labels)
        if longer:
            spent += seconds(plan.start(plan.reference), iterations * longer)
        overhead = MEASURES * len(backbones) + spent / 60  # and detectors
        left = budget - overhead
        each = 0.0
        if chosen:
            startup = sum(results(comparison.probe(s.recipes[0], s))['startup'] for s in chosen) / 60 / len(chosen)
            each = left / (len(chosen) * seeds_p) - startup
            if each < SHORTEST:
                continue
        elif left < 0:
            continue
        each = round(min(each, 600.0), 1)
        new = dataclasses.replace(
            plan,
            starts=(*fixed, *chosen),
            labels=tuple(labels),
            seeds=Seeds(seeds_p, seeds_d),
            detector=dataclasses.replace(plan.detector, iterations=iterations, longer=longer),
            pretraining=Pretraining(minutes=each) if chosen else Pretraining(iterations=4),
        )
        total = overhead + (each + startup if chosen else 0) * len(chosen) * seeds_p
        lines = [
            f'plan: {", ".join(s.name for s in new.starts)}; {each:g} min per pretraining, {seeds_p} pretraining and '
            f'{seeds_d} detector seed(s), {detectors} detectors of {iterations} iterations'
            + (f' on images of {comparison.size} px' if comparison.size else '')
            + ' with '
            f'{", ".join(f"{p:g} %" for p in labels)} of the labels'
            + (f', and {new.reference} for {longer * iterations} iterations' if longer else ''),
            f'at the measured speed this takes about {total / workers:.0f} minutes, {workers} stage(s) at a time',
        ]
        return new, lines
    least = sum(seconds(start, 120) for start in [*fixed, *pretrained[:1]]) / 60
    need = (2 * least + 2 * SHORTEST) / workers / RESERVE
    raise ConfigError(
        f'{minutes:g} minutes are too short for any comparison on this machine: give it about {need:.0f} with '
        '--minutes.'
    )


def _carry_out(
    plan: Plan,
    folder: Path,
    out: Path,
    jobs: Optional[int],
    prefix: Sequence[str],
    dry_run: bool,
    duplicates: Optional[str],
    command: str,
) -> Optional[Outcome]:
    if duplicates:
        plan = dataclasses.replace(plan, data=dataclasses.replace(plan.data, duplicates=duplicates))
    plan = resolve_files(plan, folder)
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out, jobs, prefix)
    comparison = Comparison(plan, prepare(plan, folder, out, stages.say), stages)
    for note in comparison.notes:  # of images that are not used, say: an hour later is too late
        stages.say(note)
    comparison.measure_speed()
    left, total = comparison.minutes(), len(comparison.everything())
    stages.say(
        f'{total} stages, {stages.jobs} at a time'
        + ('' if left is None else f'; those that are left take about {left:.0f} minutes at the measured speed')
    )
    if dry_run:
        for stage in comparison.everything():
            minutes = comparison.estimate(stage)
            state = 'done' if stages.result(stage) is not None else '' if minutes is None else f'{minutes:.1f} min'
            print(f'  {stage.name:48s} {state}')
        return None
    results = comparison.run()
    stages.say('writing the report')
    outcome = write_report(comparison, results, out, command)
    print(
        f'\n{headline(outcome)}\n{recommendation(outcome)}\nReport: {out / "report.html"} and {out / "report.md"}',
        flush=True,
    )
    return outcome
