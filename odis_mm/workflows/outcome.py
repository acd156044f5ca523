"""What a comparison found: tables, differences with their uncertainty, and what follows from them in words."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..datasets.layout import categories, read_coco
from ..utils.files import atomic_write
from . import stats
from .compare import Comparison, DetectorRun
from .plan import Plan
from .stages import Stage
from .stats import Difference, Runs

CONFIDENCE = 0.95
NOT_NOTED = 'a machine that an earlier version did not note'


@dataclass
class Row:
    """One start at one amount of labels.

    Attributes:
        runs: AP of all seeds.
        gap: To the reference; None for the reference itself.
        extra: Means of further values, such as AP50, in percent.
    """

    start: str
    runs: Runs
    gap: Optional[Difference]
    extra: Dict[str, float]


@dataclass
class Table:
    """All starts at one amount of labels."""

    percent: float
    images: int
    rows: List[Row]

    def row(self, start: str) -> Row:
        return next(row for row in self.rows if row.start == start)


@dataclass
class Outcome:
    """All that the report tells; see :func:`collect`.

    Attributes:
        tables: One per amount of labels, the smallest first.
        lengths: Start to (share, iterations, mean AP, lowest, highest) on the way, at ``lengths_percent`` of the
            labels.
        measures: Start to frozen measures in percent, mean over its seeds; 'random weights' beside them.
        correlations: Measure to its rank correlation with AP over all checkpoints that were fine-tuned, and their
            number.
        costs: Start to minutes, iterations and memory of one pretraining.
        last: Start to the last scalars of its pretraining (seed 0).
        tuned: Start to the trials and the chosen knobs.
        classes: Class to start to AP at the most labels.
        longer: AP of the reference at the most labels after ``detector.longer`` times the iterations; None: not run.
        ran_on: Machine and versions, as trainings noted them, to the starts that were trained there.
    """

    plan: Plan
    evaluated: str
    images: int
    tables: List[Table]
    lengths: Dict[str, List[Tuple[float, int, float, float, float]]] = field(default_factory=dict)
    lengths_percent: float = 100.0
    measures: Dict[str, Dict[str, float]] = field(default_factory=dict)
    correlations: Dict[str, Tuple[float, int]] = field(default_factory=dict)
    costs: Dict[str, Dict[str, float]] = field(default_factory=dict)
    last: Dict[str, Dict[str, float]] = field(default_factory=dict)
    tuned: Dict[str, dict] = field(default_factory=dict)
    classes: Dict[str, Dict[str, float]] = field(default_factory=dict)
    longer: Optional[float] = None
    ran_on: Dict[str, List[str]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return self.plan.reference


def collect(comparison: Comparison, results: Dict[str, dict]) -> Outcome:
    """Read the results of all stages, and compare."""
    plan, data = comparison.plan, comparison.data
    annotations = data.test if comparison.evaluated == 'test' else data.val
    evaluated = read_coco(annotations)
    count = len(evaluated['images'])
    weights = stats.resamples(count, 1000 if count <= 500 else 300)
    runs = {run: _resampled(comparison, run, annotations, weights) for run in comparison.runs}
    tables = []
    for percent in sorted(plan.labels):
        found = {s.name: _gathered(comparison, runs, s.name, percent, 1.0) for s in plan.starts}
        known = [_known_share(data.subsets[percent, seed], evaluated) for seed in range(plan.seeds.detector)]
        rows = []
        for start in plan.starts:
            name = start.name
            gap = None if name == plan.reference else stats.difference(found, name, plan.reference, CONFIDENCE)
            keys = ('box AP50', 'mask AP')
            values = [
                (results[stage.name], known[run.seed])
                for run, stage in comparison.runs.items()
                if (run.start, run.percent, run.share, run.times) == (name, percent, 1, 1)
            ]
            extra = {
                k: float(np.mean([v[k] * share for v, share in values])) for k in keys if all(k in v for v, _ in values)
            }
            rows.append(Row(name, found[name], gap, extra))
        labelled = len(read_coco(data.subsets[percent, 0])['images'])
        tables.append(Table(percent, labelled, rows))
    outcome = Outcome(plan, comparison.evaluated, count, tables)
    add_lengths(outcome, comparison, runs, results)
    add_measures(outcome, comparison, runs, results)
    for start in plan.starts:
        if start.recipes:
            done = [results[comparison.pretrainings[start.name, p].name] for p in range(plan.seeds.pretraining)]
            outcome.costs[start.name] = dict(
                minutes=float(np.mean([d['seconds'] for d in done])) / 60,
                iterations=sum(done[0]['iterations']),
                memory_mb=max(d['memory_mb'] for d in done),
            )
            outcome.last[start.name] = done[0]['last']
        if start.name in comparison.tuned:
            found = results[comparison.tuned[start.name].name]
            share = _known_share(data.subsets[plan.tuning.labels or min(plan.labels), 0], read_coco(data.val))
            trials = [{**trial, 'ap': share * trial['ap']} for trial in found['trials']]
            outcome.tuned[start.name] = {**found, 'trials': trials}
    most = max(plan.labels)
    outcome.longer = next((value for run, (value, _) in runs.items() if run.times != 1), None)
    for start in plan.starts:
        own = [r for r in comparison.runs if (r.start, r.percent, r.share, r.times) == (start.name, most, 1.0, 1)]
        found = [stats.class_ap(stats.match(str(annotations), _predictions(comparison, run))) for run in own]
        for name in found[0]:
            outcome.classes.setdefault(name, {})[start.name] = float(np.mean([f[name] for f in found]))
    outcome.ran_on = _ran_on(comparison, results)
    return outcome


def _ran_on(comparison: Comparison, results: Dict[str, dict]) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    stages = [(run.start, stage) for run, stage in comparison.runs.items()]
    stages += [(name, stage) for (name, _), stage in comparison.pretrainings.items()]
    for start, stage in stages:
        for machine in results[stage.name].get('ran_on', [NOT_NOTED]):
            if start not in found.setdefault(machine, []):
                found[machine].append(start)
    return found


def _predictions(comparison: Comparison, run: DetectorRun) -> List[dict]:
    return json.loads((comparison.stages.path(comparison.runs[run]) / 'predictions.bbox.json').read_text())


def _resampled(
    comparison: Comparison, run: DetectorRun, annotations: Path, weights: np.ndarray
) -> Tuple[float, np.ndarray]:
    """AP of a detector on all images and on the resampled ones; kept beside its predictions, on which alone it
    depends."""
    stage = comparison.runs[run]
    kept = comparison.stages.path(stage) / f'resampled-{len(weights)}.npy'
    if not kept.is_file():
        matches = stats.match(str(annotations), _predictions(comparison, run))
        whole = np.ones((1, weights.shape[1]), int)
        values = stats.average_precision(matches, np.concatenate([whole, weights]))
        atomic_write(kept, lambda file: np.save(file, values))  # another process may be about to read it
    values = np.load(kept)
    return float(values[0]), values[1:]


def _known_share(labelled: Path, evaluated: dict) -> float:
    """Share of the evaluated classes that the labelled images have an object of: mmdet's own AP is a mean over these
    alone, ours over all, as a detector that does not know a class finds none of it."""
    known = {category['id'] for category in categories(read_coco(labelled))}
    judged = {a['category_id'] for a in evaluated['annotations'] if not a['iscrowd']}
    judged &= {category['id'] for category in evaluated['categories']}
    return len(judged & known) / max(len(judged), 1)


def _gathered(comparison: Comparison, runs: dict, start: str, percent: float, share: float) -> Runs:
    seeds = comparison.plan.seeds
    pretrained = bool(comparison.plan.start(start).recipes)
    cells = [
        [runs[DetectorRun(start, p, percent, d, share)] for d in range(seeds.detector)]
        for p in range(seeds.pretraining if pretrained else 1)
    ]
    return Runs(
        np.array([[value for value, _ in row] for row in cells]),
        np.array([[boot for _, boot in row] for row in cells]),
        comparison.data.images[comparison.evaluated],
        pretrained,
    )


def add_lengths(outcome: Outcome, comparison: Comparison, runs: dict, results: Dict[str, dict]) -> None:
    """Fill in what the detectors have from checkpoints on the way: AP against iterations of pretraining."""
    plan = comparison.plan
    shares = sorted({run.share for run in runs})
    if len(shares) < 2:
        return
    outcome.lengths_percent = next(run.percent for run in runs if run.share < 1)
    for start in plan.starts:
        if not start.recipes:
            continue
        done = results[comparison.pretrainings[start.name, 0].name]
        *before, last = done['iterations']  # shares are of the last step
        points = []
        for share in shares:
            found = _gathered(comparison, runs, start.name, outcome.lengths_percent, share).value
            # of the checkpoint, which is the nearest of those that an epoch, or several, ended with
            at = sum(before) + done.get('reached', {}).get(f'{share:g}', round(last * share))
            points.append((share, at, float(found.mean()), float(found.min()), float(found.max())))
        outcome.lengths[start.name] = points


def add_measures(outcome: Outcome, comparison: Comparison, runs: dict, results: Dict[str, dict]) -> None:
    plan = comparison.plan
    points: List[Tuple[Dict[str, float], float]] = []
    by_start: Dict[str, List[dict]] = {}
    random: List[dict] = []  # those of a recipe's backbone first, which is the detector's own; a file's may be larger
    for (start, seed, share), stage in comparison.measures.items():
        found = results[stage.name]
        random.insert(len(random) if plan.start(start).steps[0].file else 0, found['random'])
        percent = outcome.lengths_percent if share < 1 else max(plan.labels)
        if outcome.lengths:
            percent = outcome.lengths_percent
        cells = [DetectorRun(start, seed, percent, d, share) for d in range(plan.seeds.detector)]
        points.append((found['metrics'], float(np.mean([runs[c][0] for c in cells]))))
        if share == 1:
            by_start.setdefault(start, []).append(found['metrics'])
    if not random:
        return
    unpretrained = next((start.name for start in plan.starts if not start.steps), None)
    percent = outcome.lengths_percent if outcome.lengths else max(plan.labels)
    if unpretrained:
        value = float(np.mean([runs[DetectorRun(unpretrained, 0, percent, d)][0] for d in range(plan.seeds.detector)]))
        points.append((random[0], value))
        by_start[unpretrained] = random[:1]
    for start, found in by_start.items():
        keys = [key for key in found[0] if all(isinstance(f.get(key), (int, float)) for f in found)]
        outcome.measures[start] = {key: float(np.mean([f[key] for f in found])) for key in keys}
    shared = set.intersection(*(set(values) for values in outcome.measures.values()))
    if len(points) >= 5:
        for key in [k for k in points[0][0] if k in shared]:
            value = stats.spearman([m[key] for m, _ in points], [ap for _, ap in points])
            if not math.isnan(value):
                outcome.correlations[key] = (value, len(points))


def verdicts(outcome: Outcome) -> List[str]:
    """One sentence per start and amount of labels, in words that follow from the interval."""
    found = []
    for table in outcome.tables:
        for row in table.rows:
            if row.gap is None:
                continue
            amount = f'with {table.images} labelled images ({table.percent:g} %)'
            interval = (
                f'{signed(row.gap.value)} points of AP, 95 % interval {signed(row.gap.low)} to {signed(row.gap.high)}'
            )
            if row.gap.verdict == 'above':
                text = f'{row.start} helps {amount}: {interval}.'
            elif row.gap.verdict == 'below':
                text = f'{row.start} does harm {amount}: {interval}.'
            else:
                text = f'{row.start}: no difference shown {amount}: {interval}.'
            found.append(text)
    return found


def headline(outcome: Outcome) -> str:
    """The verdict in one sentence or two."""
    helped: Dict[str, List[Tuple[Table, Row]]] = {}
    harmed: List[str] = []
    for table in outcome.tables:
        for row in table.rows:
            if row.gap and row.gap.verdict == 'above':
                helped.setdefault(row.start, []).append((table, row))
            if row.gap and row.gap.verdict == 'below':
                harmed.append(f'{row.start} with {table.images} labelled images')
    reference = outcome.reference
    if _found_nothing(outcome):
        return 'Nothing can be said: no detector has found anything, whatever it started from (AP 0).'
    parts = []
    if helped:
        best = max(helped, key=lambda start: max(row.gap.value for _, row in helped[start]))
        table, row = max(helped[best], key=lambda pair: pair[1].gap.value)
        parts.append(
            f'Yes: {best} is {row.gap.value:.1f} points of AP above {reference} with {table.images} labelled images '
            f'({row.runs.mean:.1f} against {table.row(reference).runs.mean:.1f}; 95 % interval {signed(row.gap.low)} '
            f'to {signed(row.gap.high)}).'
        )
        others = [start for start in helped if start != best]
        if others:
            parts.append(f'{join(others)} {"are" if len(others) > 1 else "is"} above it, too, by less.')
        open_ = [t.images for t in outcome.tables if t.row(best).gap.verdict == 'no difference shown']
        if open_:
            parts.append(f'With {join([str(n) for n in open_])} labelled images no difference is shown.')
    else:
        widest = [row.gap for table in outcome.tables for row in table.rows if row.gap]
        if widest:
            top = max(gap.high for gap in widest)
            parts.append(f'No gain is shown: no start is above {reference} by more than chance explains.')
            if top > 0:
                parts.append(f'Gains above {top:.1f} points of AP can be excluded; smaller ones cannot.')
        else:
            parts.append('There is one start only: nothing to compare.')
    if harmed:
        parts.append(f'Below {reference}: {join(harmed)}.')
    if helped and caught_up(outcome):
        times, images = outcome.plan.detector.longer, outcome.tables[-1].images
        parts.append(f'Mind: trained {times} times as long, {reference} reaches {outcome.longer:.1f} with {images}.')
    return ' '.join(parts)


def recommendation(outcome: Outcome) -> str:
    """What to do now."""
    if _found_nothing(outcome):
        longer = 3 * outcome.plan.detector.iterations
        return f'Train the detectors for longer (--set detector.iterations={longer}), and compare again.'
    good = {}
    for start in outcome.plan.starts:
        gaps = [table.row(start.name).gap for table in outcome.tables]
        if None in gaps or any(gap.verdict == 'below' for gap in gaps):
            continue
        if any(gap.verdict == 'above' for gap in gaps):
            good[start.name] = float(np.mean([gap.value for gap in gaps]))
    if not good:
        mixed = [
            row.start
            for row in outcome.tables[0].rows
            if {'above', 'below'} <= {t.row(row.start).gap.verdict for t in outcome.tables if row.gap}
        ]
        if mixed:
            return (
                f'More labels turn the gain of {join(mixed)} into harm, or the other way round: take what is best with '
                'as many labels as you have.'
            )
        return (
            f'Keep {outcome.reference}: within this budget nothing else was shown to be better. Still to try: a longer '
            'pretraining, more images, other weights to start from.'
        )
    best = max(good, key=good.get)
    text = f'Start from {best}'
    rivals = [name for name in good if name != best and not _apart(outcome, best, name)]
    if rivals:
        text += f'; these runs show no difference between it and {join(rivals)}'
        cheap = [n for n in rivals if _minutes(outcome, n) < 0.7 * _minutes(outcome, best)]
        if cheap:
            text += f', and {join(cheap)} {"takes" if len(cheap) == 1 else "take"} less time'
    text += '.'
    first = outcome.tables[0]
    if first.row(best).gap.verdict != 'above':
        return text  # else the next sentence would tell of a gain that was not shown
    worth = stats.labels_worth(
        [t.images for t in outcome.tables],
        [t.row(outcome.reference).runs.mean for t in outcome.tables],
        first.row(best).runs.mean,
    )
    if worth and worth > 1.1 * first.images:
        text += (
            f' With {first.images} labelled images its AP is that of {outcome.reference} with about {worth:.0f}, '
            f'{worth / first.images:.1f} times as many.'
        )
    elif (
        first.row(best).runs.mean > max(t.row(outcome.reference).runs.mean for t in outcome.tables)
        and len(outcome.tables) > 1
    ):
        text += (
            f' With {first.images} labelled images it is above {outcome.reference} with {outcome.tables[-1].images}.'
        )
    return text


def to_settle(outcome: Outcome) -> List[str]:
    """What would decide what is open."""
    found = []
    for table in outcome.tables:
        for row in table.rows:
            if row.gap is None or row.gap.verdict != 'no difference shown':
                continue
            parts = {name: part for name, part in row.gap.parts.items() if not math.isnan(part)}
            total = sum(parts.values())
            if not total:
                continue
            main = max(parts, key=parts.get)
            reach = (row.gap.high - row.gap.low) / 2
            factor = (reach / max(abs(row.gap.value), 0.5)) ** 2
            source = {
                'images': f'the {outcome.images} images that are evaluated',
                'detector seeds': 'the detector seeds',
                'pretraining seeds': 'the pretraining seeds',
            }[main]
            aim = f'a difference of {max(abs(row.gap.value), 0.5):.1f} points'
            more = join([name for name, part in parts.items() if part])  # of one alone, the others' parts would stay
            found.append(
                f'{row.start} with {table.images} labelled images: {parts[main] / total:.0%} of the uncertainty comes '
                f'from {source}; about {max(factor, 1.1):.1f} times as many {more} would show {aim}.'
            )
    numbers = dict(detector=outcome.plan.seeds.detector)
    if any(start.recipes for start in outcome.plan.starts):  # files have one seed, whatever the plan says
        numbers = dict(pretraining=outcome.plan.seeds.pretraining, **numbers)
    missing = [name for name, n in numbers.items() if n < 2]
    if missing:
        found.append(
            f'There was one {" and one ".join(missing)} seed, so the intervals leave out how much results vary '
            f'between seeds: take two or more (--set {" ".join(f"seeds.{name}=2" for name in missing)}).'
        )
    return found


def best_row(table: Table, reference: str) -> Optional[Row]:
    """Return the row of the highest mean AP but for the reference's; None without others."""
    return max((row for row in table.rows if row.start != reference), key=lambda row: row.runs.mean, default=None)


def caught_up(outcome: Outcome) -> bool:
    """Whether the reference, trained for longer, is at least as good as the best start at the length of the tables."""
    best = best_row(outcome.tables[-1], outcome.reference)
    return best is not None and outcome.longer is not None and outcome.longer >= best.runs.mean


def longer_training(outcome: Outcome) -> str:
    """Return what the longer training of the reference says about the gains; empty if it was not run."""
    table = outcome.tables[-1]
    best = best_row(table, outcome.reference)
    if outcome.longer is None or best is None:
        return ''
    detector = outcome.plan.detector
    steps = detector.iterations * detector.longer
    text = (
        f'trained {detector.longer} times as long ({steps} iterations, one seed), {outcome.reference} reaches '
        f'{outcome.longer:.1f} with {table.images} labelled images. {best.start} has {best.runs.mean:.1f} after '
        f'{detector.iterations}.'
    )
    if best.runs.mean <= next(row for row in table.rows if row.start == outcome.reference).runs.mean:
        return text  # there is no gain to explain
    if caught_up(outcome):
        return text + (
            f' So a gain with so many labels can be one of training time alone. If you train your detector until it '
            f'gains no more, compare at that length: --set detector.iterations={steps}.'
        )
    return text + ' So the gain is more than a shorter training.' * (best.gap.verdict == 'above')


def flat_baseline(outcome: Outcome) -> str:
    """Return a sentence if the reference gains nothing from more labels; empty otherwise, and if it was also trained
    for longer, which says more."""
    if outcome.longer is not None:
        return ''
    first, last = outcome.tables[0], outcome.tables[-1]
    few, many = (table.row(outcome.reference).runs.mean for table in (first, last))
    if last.images == first.images or many > few:
        return ''
    steps = outcome.plan.detector.iterations
    return (
        f'{outcome.reference} gains nothing from more labels ({few:.1f} with {first.images} images, {many:.1f} with '
        f'{last.images}), so {steps} iterations may be too few for its detector to use them. A longer training (--set '
        f'detector.iterations={3 * steps}, or more --minutes) can leave less of the differences.'
    )


def _found_nothing(outcome: Outcome) -> bool:
    return not any(row.runs.value.any() for table in outcome.tables for row in table.rows)


def _apart(outcome: Outcome, a: str, b: str) -> bool:
    """Whether one is above the other at some amount of labels."""
    for table in outcome.tables:
        found = {row.start: row.runs for row in table.rows}
        if stats.difference(found, a, b, CONFIDENCE).verdict != 'no difference shown':
            return True
    return False


def _minutes(outcome: Outcome, start: str) -> float:
    return outcome.costs.get(start, {}).get('minutes', 0.0)


def signed(value: float) -> str:
    """With its sign, a real minus."""
    return f'{value:+.1f}'.replace('-', '−')


def join(words: Sequence[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'


def as_json(outcome: Outcome) -> dict:
    """All numbers, for programs."""
    return dict(
        name=outcome.plan.name,
        evaluated=dict(split=outcome.evaluated, images=outcome.images),
        reference=outcome.reference,
        verdict=headline(outcome),
        recommendation=recommendation(outcome),
        tables=[
            dict(
                percent=table.percent,
                images=table.images,
                rows=[
                    dict(
                        start=row.start,
                        ap=row.runs.value.round(3).tolist(),
                        mean=round(row.runs.mean, 3),
                        **{k: round(v, 3) for k, v in row.extra.items()},
                        gap=None
                        if row.gap is None
                        else dict(
                            value=round(row.gap.value, 3),
                            low=round(row.gap.low, 3),
                            high=round(row.gap.high, 3),
                            verdict=row.gap.verdict,
                        ),
                    )
                    for row in table.rows
                ],
            )
            for table in outcome.tables
        ],
        lengths=outcome.lengths,
        measures=outcome.measures,
        correlations=outcome.correlations,
        costs=outcome.costs,
        last=outcome.last,
        tuned=outcome.tuned,
        classes=outcome.classes,
        longer=outcome.longer,
        ran_on=outcome.ran_on,
    )


def stage_folders(comparison: Comparison) -> Dict[str, Stage]:
    """Start to the stage of its first pretraining, whose config and pictures can be shown."""
    return {start: stage for (start, seed), stage in comparison.pretrainings.items() if seed == 0}
