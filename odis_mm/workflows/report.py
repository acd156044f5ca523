"""The report of a comparison: one HTML file that needs nothing beside it, and the same as Markdown."""

import base64
import datetime
import html
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ..datasets.image_io import as_colours, read_image
from ..datasets.layout import read_coco
from ..datasets.reading import find_reading
from ..utils.environment import hardware
from ..utils.files import atomic_write_text
from .compare import Comparison, DetectorRun
from .outcome import (
    CONFIDENCE,
    Outcome,
    as_json,
    collect,
    flat_baseline,
    headline,
    join,
    longer_training,
    recommendation,
    signed,
    stage_folders,
    to_settle,
    verdicts,
)
from .plan import dump_plan

COLORS = ('#4c6a92', '#d1495b', '#2a9d8f', '#edae49', '#7b5ea7', '#3d3d3d', '#8d6a3f', '#5fa8d3')
SCORE = 0.3  # least score of a detection that is drawn
PICTURE = 320  # longest side in pixels
MEASURES = {
    'object_token': 'class of an object, [OBJ] token (20-NN accuracy)',
    'box_pool': 'class of an object, pooled box (20-NN accuracy)',
    'object_auc': 'object or background (area under ROC)',
    'mask_miou': 'object or background per patch (mean IoU)',
}


@dataclass
class Section:
    """A heading and what stands below it: texts, lists, tables, figures (name to SVG), pictures (rows of JPEG with
    captions)."""

    title: str
    intro: List[str] = field(default_factory=list)
    items: List[str] = field(default_factory=list)
    header: Sequence[str] = ()
    rows: List[Sequence[str]] = field(default_factory=list)
    figures: Dict[str, Tuple[str, str]] = field(default_factory=dict)
    pictures: List[List[Tuple[str, bytes]]] = field(default_factory=list)
    code: str = ''


def write_report(comparison: Comparison, results: Dict[str, dict], work_dir: Path, command: str) -> Outcome:
    """Write ``report.html``, ``report.md``, its ``figures/`` and ``report.json`` to the work dir.

    A report of another plan that is there is kept under another name.
    """
    outcome = collect(comparison, results)
    with matplotlib.rc_context({'text.parse_math': False}):  # in the name of a start, $ begins no formula
        sections = build(outcome, comparison, command)
    _keep_former(work_dir, dump_plan(comparison.plan))
    (work_dir / 'figures').mkdir(exist_ok=True)
    for section in sections:
        for name, (svg, _) in section.figures.items():
            atomic_write_text(work_dir / 'figures' / f'{name}.svg', svg)
    title = f'{outcome.plan.name}: which start helps the detector?'
    atomic_write_text(work_dir / 'report.html', to_html(title, sections))
    atomic_write_text(work_dir / 'report.md', to_markdown(title, sections))
    content = dict(as_json(outcome), plan=dump_plan(comparison.plan), hardware=hardware())
    atomic_write_text(work_dir / 'report.json', json.dumps(content, indent=1))
    return outcome


def _keep_former(work_dir: Path, plan: str) -> None:
    former = work_dir / 'report.json'
    if not former.is_file() or json.loads(former.read_text()).get('plan') == plan:
        return
    stamp = datetime.datetime.fromtimestamp(former.stat().st_mtime).strftime('%Y%m%d_%H%M%S')
    name, number = f'report_{stamp}', 2
    while (work_dir / f'{name}.json').exists():  # two plans within a second
        name, number = f'report_{stamp}_{number}', number + 1
    for suffix in ('json', 'html', 'md'):
        path = work_dir / f'report.{suffix}'
        if path.is_file():
            path.rename(work_dir / f'{name}.{suffix}')
    if (work_dir / 'figures').is_dir():  # report.md shows them
        (work_dir / 'figures').rename(work_dir / f'{name}_figures')
        kept = work_dir / f'{name}.md'
        if kept.is_file():
            atomic_write_text(kept, kept.read_text().replace('](figures/', f']({name}_figures/'))


def build(outcome: Outcome, comparison: Comparison, command: str) -> List[Section]:
    """All sections, the verdict first."""
    plan = outcome.plan
    sections = [_verdict(outcome, comparison), _table(outcome)]
    if len(outcome.tables) > 1:
        sections.append(_curves(outcome))
    if outcome.lengths:
        sections.append(_lengths(outcome))
    if plan.pictures:
        sections.append(_detections(outcome, comparison))
    if len(outcome.classes) > 1:
        starts = [start.name for start in plan.starts]
        sections.append(
            Section(
                'By class',
                [f'AP with {outcome.tables[-1].images} labelled images, mean over the seeds.'],
                header=['class', *starts],
                rows=[
                    [name, *(f'{by.get(s, float("nan")):.1f}' for s in starts)] for name, by in outcome.classes.items()
                ],
            )
        )
    if outcome.measures:
        sections.append(_measures(outcome))
    if outcome.costs:
        sections.append(_costs(outcome))
    if outcome.tuned:
        sections.append(_tuning(outcome))
    if views := _views(comparison):
        sections.append(views)
    sections.append(_method(outcome, comparison, command))
    return sections


def _verdict(outcome: Outcome, comparison: Comparison) -> Section:
    section = Section('Verdict', [headline(outcome), f'**Recommendation.** {recommendation(outcome)}'])
    section.items = [*verdicts(outcome)]
    if settle := to_settle(outcome):
        section.items += ['What would settle the rest: ' + ' '.join(settle)]
    if short := longer_training(outcome) or flat_baseline(outcome):
        section.items.append(f'Note: {short}')
    if len(outcome.ran_on) > 1:
        where = '; '.join(f'{machine} ({", ".join(starts)})' for machine, starts in outcome.ran_on.items())
        section.items.append(
            f'Note: not all of it ran on one machine with one set of versions: {where}. A difference between starts '
            'may come from that; another --work-dir runs all of it anew.'
        )
    if scenes := comparison.data.scenes[comparison.evaluated]:
        names = ', '.join(f'{Path(a).name} ({Path(b).name})' for a, b in list(scenes.items())[:3])
        section.items.append(
            f'Note: {len(scenes)} of the {outcome.images} evaluated images show the scene of a training image, such as '
            f'{names}. The numbers hold for such images; for other places or cameras they may differ.'
        )
    if twice := comparison.data.duplicates:
        what = 'left out of the training' if comparison.plan.data.duplicates == 'drop' else 'ALLOWED in the training'
        names = ', '.join(
            f'{Path(evaluated).name} is {Path(trained).name} (the same {kind})'
            for evaluated, trained, kind in twice[:3]
        )
        more = f' and {len(twice) - 3} more' if len(twice) > 3 else ''
        section.items.append(f'Duplicates of evaluated images, {what}: {names}{more}.')
    return section


def _table(outcome: Outcome) -> Section:
    extras = list(dict.fromkeys(key for table in outcome.tables for row in table.rows for key in row.extra))
    rows = []
    for table in outcome.tables:
        for row in table.rows:
            values = ', '.join(f'{v:.1f}' for v in row.runs.value.ravel())
            gap = (
                '-'
                if row.gap is None
                else f'{signed(row.gap.value)} ({signed(row.gap.low)} to {signed(row.gap.high)}): {row.gap.verdict}'
            )
            rows.append(
                [
                    f'{table.images} ({table.percent:g} %)',
                    row.start,
                    f'{row.runs.mean:.1f}',
                    values,
                    gap,
                    *(f'{row.extra[key]:.1f}' if key in row.extra else '-' for key in extras),
                ]
            )
    return Section(
        'Box AP',
        [
            f'COCO AP in percent on {outcome.images} {outcome.evaluated} images. Each value is one seed; the '
            f'difference to {outcome.reference} has its {100 * CONFIDENCE:.0f} % interval, over images and seeds.'
        ],
        header=['labelled images', 'start', 'AP', 'each seed', f'against {outcome.reference}', *extras],
        rows=rows,
        figures={'differences': (_forest(outcome), f'Difference to {outcome.reference} with its interval')},
    )


def _curves(outcome: Outcome) -> Section:
    figure, axes = _axes('labelled images', 'box AP')
    for i, start in enumerate(outcome.plan.starts):
        x = [table.images for table in outcome.tables]
        runs = [table.row(start.name).runs for table in outcome.tables]
        axes.plot(
            x, [r.mean for r in runs], '-o', color=COLORS[i % len(COLORS)], label=_label(start.name), markersize=4
        )
        for position, r in zip(x, runs):
            axes.plot([position] * r.value.size, r.value.ravel(), '.', color=COLORS[i % len(COLORS)], alpha=0.4)
    axes.set_xscale('log')
    axes.set_xticks([table.images for table in outcome.tables], [str(t.images) for t in outcome.tables])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    return Section(
        'AP against labels',
        ['Lines: means. Dots: single seeds.'],
        figures={'labels': (_svg(figure), 'Box AP against the number of labelled images')},
    )


def _forest(outcome: Outcome) -> str:
    rows = [(table, row) for table in outcome.tables for row in table.rows if row.gap is not None]
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * max(len(rows), 1)), layout='constrained')
    axes = figure.subplots()
    names = [start.name for start in outcome.plan.starts]
    for y, (_, row) in enumerate(reversed(rows)):
        color = COLORS[names.index(row.start) % len(COLORS)]
        axes.plot([row.gap.low, row.gap.high], [y, y], '-', color=color, linewidth=2)
        axes.plot(row.gap.value, y, 'o', color=color, markersize=6)
    axes.axvline(0, color='#888', linewidth=1)
    labels = [f'{row.start}, {table.images} labelled' for table, row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_xlabel(f'points of AP above {outcome.reference}')
    _plain(axes)
    axes.grid(axis='x', alpha=0.25)
    return _svg(figure)


def _lengths(outcome: Outcome) -> Section:
    figure, axes = _axes('iterations of pretraining', 'box AP')
    names = [start.name for start in outcome.plan.starts]
    for start, points in outcome.lengths.items():
        color = COLORS[names.index(start) % len(COLORS)]
        _, x, mean, low, high = zip(*points)
        axes.plot(x, mean, '-o', color=color, label=_label(start), markersize=4)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    table = next(t for t in outcome.tables if t.percent == outcome.lengths_percent)
    axes.axhline(table.row(outcome.reference).runs.mean, color='#888', linestyle='--', label=_label(outcome.reference))
    axes.legend(frameon=False, fontsize=9)
    return Section(
        'AP against pretraining length',
        [
            f'With {table.images} labelled images; intermediate checkpoints of the same runs, before their learning '
            'rate had decayed. Bands: lowest to highest seed.'
        ],
        figures={'lengths': (_svg(figure), 'Box AP against the length of pretraining')},
    )


def _measures(outcome: Outcome) -> Section:
    keys = list(dict.fromkeys(key for values in outcome.measures.values() for key in values if key in MEASURES))
    section = Section(
        'Frozen features',
        ['Measures of the frozen backbones, before a detector trains them, in percent.'],
        header=['start', *(MEASURES[key] for key in keys)],
        rows=[
            [start, *(f'{values[key]:.1f}' if key in values else '-' for key in keys)]
            for start, values in outcome.measures.items()
        ],
    )
    if outcome.correlations:
        count = next(iter(outcome.correlations.values()))[1]
        parts = [
            f'{MEASURES[key]} {signed2(value)}' for key, (value, _) in outcome.correlations.items() if key in MEASURES
        ]
        section.intro.append(f'Rank correlation with AP over {count} checkpoints: {"; ".join(parts)}.')
    return section


def _costs(outcome: Outcome) -> Section:
    rows = [
        [
            start,
            f'{cost["iterations"]:.0f}',
            f'{cost["minutes"]:.1f}',
            f'{cost["memory_mb"]:.0f}',
            ', '.join(f'{key} {value:.3g}' for key, value in outcome.last[start].items() if _is_loss(key)),
        ]
        for start, cost in outcome.costs.items()
    ]
    return Section(
        'What each start cost',
        ['One pretraining: mean time over the seeds, peak memory of a process; last logged values of seed 0.'],
        header=['start', 'iterations', 'minutes', 'memory (MB)', 'last logged'],
        rows=rows,
    )


def _is_loss(key: str) -> bool:
    return key.startswith('loss') or key in ('effective_rank', 'similarity', 'teacher_entropy', 'overlap')


def _tuning(outcome: Outcome) -> Section:
    rows = []
    for start, found in outcome.tuned.items():
        for i, trial in enumerate(found['trials']):
            words = '; '.join(
                f'{part}: ' + ', '.join(f'{key} = {value}' for key, value in trial[part].items())
                for part in ('pretraining', 'detector')  # both have a knob optim_wrapper.optimizer.lr
                if trial[part]
            )
            words = words or 'as the configs have it'
            rows.append([start, f'{trial["ap"]:.1f}' + (' (chosen)' if i == found['trial'] else ''), words])
    tuning = outcome.plan.tuning
    note = 'The same val images chose the knobs and are in the tables: the gains of all starts are a little too high.'
    return Section(
        'Tuning',
        [
            f'{tuning.trials} trials per start, the first with the config as it is, judged by box AP on the val images.'
            + (f' {note}' if outcome.evaluated == 'val' else '')
        ],
        header=['start', 'AP on val', 'knobs'],
        rows=rows,
    )


def _detections(outcome: Outcome, comparison: Comparison) -> Section:
    """The same images with the detections of every start, at the amount of labels in the middle."""
    table = outcome.tables[(len(outcome.tables) - 1) // 2]
    data = comparison.data
    content = read_coco(data.test if outcome.evaluated == 'test' else data.val)
    objects: Dict[int, List[dict]] = {}
    for a in content['annotations']:
        objects.setdefault(a['image_id'], []).append(a)
    images = [image for image in content['images'] if image['id'] in objects]
    chosen = [images[i * len(images) // outcome.plan.pictures] for i in range(min(outcome.plan.pictures, len(images)))]
    names = {c['id']: c['name'] for c in content['categories']}
    order = {c: i for i, c in enumerate(names)}
    found: Dict[str, Dict[int, List[dict]]] = {}
    for start in outcome.plan.starts:
        stage = comparison.runs[DetectorRun(start.name, 0, table.percent, 0)]
        boxes: Dict[int, List[dict]] = {}
        for d in json.loads((comparison.stages.path(stage) / 'predictions.bbox.json').read_text()):
            if d['score'] >= SCORE:
                boxes.setdefault(d['image_id'], []).append(d)
        found[start.name] = boxes
    rows = []
    reading = find_reading([image['file_name'] for image in chosen]).options
    for image in chosen:
        pixels = as_colours(read_image(image['file_name'], **reading))  # as detectors see them
        row = [('annotated', _drawn(pixels, objects[image['id']], order))]
        row += [(start, _drawn(pixels, boxes.get(image['id'], []), order)) for start, boxes in found.items()]
        rows.append(row)
    legend = ', '.join(f'{name}: {_color_name(i)}' for name, i in ((names[c], i) for c, i in order.items()) if i < 8)
    return Section(
        'Detections side by side',
        [f'With {table.images} labelled images, first seeds, score above {SCORE}. {legend}.'],
        pictures=rows,
    )


_BOX_COLORS = (
    ('red', '#e6194b'),
    ('blue', '#2f6fed'),
    ('green', '#2fbf4b'),
    ('orange', '#ff9f1a'),
    ('purple', '#a23bd6'),
    ('cyan', '#19c5d9'),
    ('yellow', '#f2e205'),
    ('pink', '#ff6fc8'),
)


def _color_name(i: int) -> str:
    return _BOX_COLORS[i % len(_BOX_COLORS)][0]


def _drawn(pixels: np.ndarray, boxes: Sequence[dict], order: Dict[int, int]) -> bytes:
    image = Image.fromarray(pixels)
    zoom = PICTURE / max(image.size)
    image = image.resize((max(1, round(image.width * zoom)), max(1, round(image.height * zoom))))
    draw = ImageDraw.Draw(image)
    for box in boxes:
        x, y, w, h = (v * zoom for v in box['bbox'])
        color = _BOX_COLORS[order.get(box['category_id'], 0) % len(_BOX_COLORS)][1]
        draw.rectangle((x, y, max(x + w, x + 1), max(y + h, y + 1)), outline=color, width=2)
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=85)
    return out.getvalue()


def _views(comparison: Comparison) -> Optional[Section]:
    """What the pretrainings saw, where they drew it themselves."""
    rows = []
    for start, stage in stage_folders(comparison).items():
        for path in sorted(comparison.stages.path(stage).rglob('views_*.png'))[:1]:
            with Image.open(path) as source:
                image = source.convert('RGB')
            if image.width > 900:
                image = image.resize((900, round(image.height * 900 / image.width)))
            rows.append([(start, _jpeg(image))])
    if not rows or not comparison.plan.pictures:
        return None
    return Section(
        'What the pretrainings see', ['Crops of one training image, as the first iteration saw them.'], pictures=rows
    )


def _method(outcome: Outcome, comparison: Comparison, command: str) -> Section:
    plan, data = comparison.plan, comparison.data
    boxes = comparison.told_boxes()
    steps = [step for start in plan.starts for step in start.steps]
    items = [
        *([f'Command: `{command}`'] if command else []),
        f'{datetime.date.today().isoformat()}; {"; ".join(outcome.ran_on) or hardware()}; {comparison.stages.jobs} '
        'stage(s) at a time.',
        f'Training images: {data.images["train"]}, of which a label fraction is drawn anew by each detector seed, '
        'smaller ones within larger ones'
        + (f'; {data.images["unlabelled"]} further images without labels' if data.images['unlabelled'] else '')
        + f'. Evaluated: {outcome.images} images ({outcome.evaluated}).',
        *comparison.notes,
        'Detector: the same for all starts'
        + (", but for the backbone, which has the shape of a start's file" if any(s.file for s in steps) else '')
        + f', {plan.detector.iterations} iterations, {plan.seeds.detector} seed(s), all weights trained'
        + (f', images of {comparison.size} px of short side.' if comparison.size else '.'),
        'Interval: variance from 1,000 resamplings of the evaluated images (300 above 500 images; the same for all '
        'runs), plus the variance between detector seeds and between pretraining seeds, pooled over the starts; '
        'Student, Satterthwaite. One such interval in twenty misses the true difference.',
    ]
    if any(start.recipes for start in plan.starts):
        length = (
            f'{plan.pretraining.iterations} iterations'
            if plan.pretraining.iterations is not None
            else f'{plan.pretraining.minutes:g} minutes at the measured speed'
        )
        items.append(
            f'Pretraining: {length} for every start, {plan.seeds.pretraining} seed(s), on all training images; '
            + (
                f'{len({evaluated for evaluated, *_ in data.duplicates})} evaluated images are among them.'
                if data.duplicates and plan.data.duplicates == 'allow'
                else 'no evaluated image is among them (checked by hash and by similarity).'
            )
        )
    items += [
        f'{start}: by its options, the pretraining read {paths}, in which no evaluated image was looked for.'
        for start, paths in comparison.own_data().items()
    ]
    if boxes:
        items.append(
            f'{join(boxes)}: the pretraining used the boxes of all training images, not their classes. With fewer '
            'labels than images that is weak supervision, which the other starts did not have (boxes: false in the '
            'plan turns it off).'
        )
    return Section('How it was measured', items=items, code=dump_plan(plan))


def signed2(value: float) -> str:
    return f'{value:+.2f}'.replace('-', '−')


def _axes(x: str, y: str):
    figure = Figure(figsize=(7.2, 3.6), layout='constrained')
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    _plain(axes)
    return figure, axes


def _plain(axes) -> None:
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'odis_mm', 'font.family': 'sans-serif'}):
        FigureCanvasSVG(figure).print_svg(out, metadata={'Date': None})
    text = out.getvalue()
    return text[text.index('<svg') :]


def _label(start: str) -> str:
    """The name of a start for a legend: matplotlib leaves out what begins with _."""
    return f' {start}' if start.startswith('_') else start


def _parts(text: str) -> Tuple[str, str, str]:
    """A **bold** beginning, what stands as it is, and `code` at the end; names may hold such marks, too."""
    bold, _, rest = text[2:].partition('**') if text.startswith('**') else ('', '', text)
    plain, _, code = rest[:-1].partition('`') if rest.endswith('`') else (rest, '', '')
    return bold, plain, code


def _as_markdown(text: str) -> str:
    bold, plain, code = _parts(text)
    return (f'**{bold}**' if bold else '') + _unmarked(plain) + (f'`{code}`' if code else '')


def _unmarked(text: object, marks: str = '<*`') -> str:
    """Text in which these characters are no marks of Markdown: a class named <none> would not be shown."""
    return ''.join(f'\\{c}' if c in marks else c for c in str(text))


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f'# {_unmarked(title)}', '']
    for section in sections:
        lines += [f'## {section.title}', '']
        for text in section.intro:
            lines += [_as_markdown(text), '']
        lines += [f'- {_as_markdown(item)}' for item in section.items]
        lines += [''] * bool(section.items)
        if section.rows:
            header, *rows = [[_unmarked(c, '|<*`') for c in row] for row in (section.header, *section.rows)]
            lines += ['| ' + ' | '.join(row) + ' |' for row in (header, ['---'] * len(header), *rows)]
            lines.append('')
        for name, (_, words) in section.figures.items():
            lines += [f'![{words}](figures/{name}.svg)', '']
        if section.pictures:
            lines += ['The pictures are in report.html.', '']
        if section.code:
            lines += ['```yaml', section.code.rstrip(), '```', '']
    return '\n'.join(lines)


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; color: #1d232b; background:
  #f6f7f9; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 8px 0 20px; }
h2 { font-size: 19px; margin: 0 0 10px; }
section { background: #fff; border: 1px solid #e2e6eb; border-radius: 10px; padding: 18px 22px; margin: 0 0
  18px; overflow-x: auto; }
section.verdict { border-left: 6px solid #2a9d8f; }
section.verdict p:first-of-type { font-size: 19px; line-height: 1.4; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid #e9ecf0; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #cfd6de; }
tr.first td { border-top: 2px solid #cfd6de; }
ul { padding-left: 20px; margin: 8px 0; }
li { margin: 3px 0; }
svg { max-width: 100%; height: auto; display: block; margin-top: 14px; }
pre { background: #f3f5f7; padding: 12px; border-radius: 6px; overflow-x: auto; font-size: 13px; }
code { background: #f3f5f7; padding: 1px 4px; border-radius: 4px; font-size: 13px; }
.pictures { display: grid; gap: 10px; margin-top: 8px; }
.pictures figure { margin: 0; min-width: 0; }
.pictures img { width: 100%; display: block; border-radius: 4px; }
.pictures figcaption { font-size: 13px; color: #5a6572; padding: 2px 0; }
"""


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One file: style, figures and pictures are inside, nothing is fetched."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>',
        f'<h1>{html.escape(title)}</h1>',
    ]
    for i, section in enumerate(sections):
        parts.append(f'<section{" class=verdict" if not i else ""}><h2>{html.escape(section.title)}</h2>')
        parts += [f'<p>{_inline(text)}</p>' for text in section.intro]
        if section.items:
            parts.append('<ul>' + ''.join(f'<li>{_inline(item)}</li>' for item in section.items) + '</ul>')
        if section.rows:
            parts.append(
                '<table><thead><tr>' + ''.join(f'<th>{html.escape(h)}</th>' for h in section.header) + '</tr></thead>'
            )
            former: Optional[str] = None
            for row in section.rows:
                new = former is not None and row[0] != former and len({r[0] for r in section.rows}) < len(section.rows)
                former = str(row[0])
                parts.append(
                    f'<tr{" class=first" if new else ""}>'
                    + ''.join(f'<td>{html.escape(str(c))}</td>' for c in row)
                    + '</tr>'
                )
            parts.append('</table>')
        for svg, words in section.figures.values():
            parts.append(f'<div role="img" aria-label="{html.escape(words)}">{svg}</div>')
        for row in section.pictures:
            parts.append(f'<div class="pictures" style="grid-template-columns: repeat({len(row)}, 1fr)">')
            for caption, jpeg in row:
                data = base64.b64encode(jpeg).decode()
                caption = html.escape(caption)
                parts.append(
                    f'<figure><img alt="{caption}" '
                    f'src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
                )
            parts.append('</div>')
        if section.code:
            parts.append(f'<details><summary>The plan</summary><pre>{html.escape(section.code)}</pre></details>')
        parts.append('</section>')
    parts.append('</main></body></html>')
    return '\n'.join(parts)


def _inline(text: str) -> str:
    bold, plain, code = map(html.escape, _parts(text))
    return (f'<b>{bold}</b>' if bold else '') + plain + (f'<code>{code}</code>' if code else '')
