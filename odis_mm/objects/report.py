"""A page about found objects: how many, how large, where, and how good if annotations are there to compare with."""

import base64
import html
import io
import logging
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.logging import print_log

from ..datasets import read_image
from ..datasets.image_io import as_colours
from ..utils.errors import BadImageError, printable
from ..utils.files import PathLike, atomic_write, atomic_write_text
from ..utils.paths import is_searched
from .labelled import told_of_other_folders
from .recall import common_images, random_boxes, recall_of

SMALL, LARGE = 32**2, 96**2  # square pixels, COCO's bounds
ALIKE_BOXES = 0.9  # IoU of near-duplicate boxes
ALIKE_IMAGES = 3  # bits of 64 in which near-duplicate images differ at most
SHEET = 20  # pictures
DRAWN = 15  # boxes of a picture


def summarise(content: dict) -> dict:
    """Count what a COCO-style json of objects holds.

    Returns:
        dict: numbers of ``images``, ``objects``, ``empty`` images, ``small``, ``medium`` and ``large`` objects (COCO's
        bounds, by box), ``duplicate_boxes`` (pairs of one image with IoU above 0.9), ``duplicate_images`` (groups of
        names); and per image or object the arrays ``per_image``, ``coverage`` (share of the image that boxes cover),
        ``side`` (square root of the area as a share of the image's), ``score`` (None without).
    """
    number = {image['id']: i for i, image in enumerate(content['images'])}
    size = np.array([[image['width'], image['height']] for image in content['images']], float).reshape(-1, 2)
    owner = np.array([number[entry['image_id']] for entry in content['annotations']], int)
    boxes = np.array([entry['bbox'] for entry in content['annotations']], float).reshape(-1, 4)
    area = boxes[:, 2] * boxes[:, 3]
    per_image = np.bincount(owner, minlength=len(size))
    order = np.argsort(owner, kind='stable')
    groups = np.split(boxes[order], np.cumsum(per_image)[:-1]) if len(size) else []
    scores = [entry.get('score') for entry in content['annotations']]
    return dict(
        images=len(size),
        objects=len(boxes),
        empty=int((per_image == 0).sum()),
        small=int((area < SMALL).sum()),
        medium=int(((area >= SMALL) & (area < LARGE)).sum()),
        large=int((area >= LARGE).sum()),
        duplicate_boxes=sum(_alike_boxes(group) for group in groups),
        duplicate_images=near_duplicates(content['images']),
        per_image=per_image,
        coverage=np.array([coverage(group, *wh) for group, wh in zip(groups, size)]),
        side=np.sqrt(area / size[owner].prod(1)) if len(boxes) else area,
        score=None if not scores or None in scores else np.array(scores, float),
    )


def coverage(boxes: np.ndarray, width: float, height: float) -> float:
    """Share of an image that the union of its boxes [n, 4] (x, y, w, h) covers."""
    if not len(boxes):
        return 0.0
    x1, y1 = boxes[:, 0].clip(0, width), boxes[:, 1].clip(0, height)
    x2, y2 = (boxes[:, 0] + boxes[:, 2]).clip(0, width), (boxes[:, 1] + boxes[:, 3]).clip(0, height)
    xs, ys = np.unique(np.concatenate([x1, x2])), np.unique(np.concatenate([y1, y2]))
    inside = np.zeros((len(ys) - 1, len(xs) - 1), bool)
    for left, top, right, bottom in zip(*(np.searchsorted(*pair) for pair in ((xs, x1), (ys, y1), (xs, x2), (ys, y2)))):
        inside[top:bottom, left:right] = True
    return float((inside * np.diff(ys)[:, None] * np.diff(xs)).sum() / (width * height))


def _alike_boxes(boxes: np.ndarray) -> int:
    if len(boxes) < 2:
        return 0
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(-1)
    area = boxes[:, 2:].prod(-1)
    iou = shared / np.maximum(area[:, None] + area - shared, 1e-9)
    return int((np.triu(iou, 1) > ALIKE_BOXES).sum())


def near_duplicates(images: Sequence[dict]) -> List[List[str]]:
    """Return groups of names of images that look the same, by the hashes that the search left (none without)."""
    hashes = [(int(image['dhash'], 16), image['file_name']) for image in images if image.get('dhash')]
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for shift in range(0, 64, 16):  # three differing bits leave one of four quarters equal
        buckets: Dict[int, List[int]] = {}
        for i, (value, _) in enumerate(hashes):
            buckets.setdefault(value >> shift & 0xFFFF, []).append(i)
        for members in buckets.values():
            members = members[:500]  # blank pictures
            for a, i in enumerate(members):
                for j in members[a + 1 :]:
                    if (hashes[i][0] ^ hashes[j][0]).bit_count() <= ALIKE_IMAGES:
                        parent[root(j)] = root(i)
    groups: Dict[int, List[str]] = {}
    for i, (_, name) in enumerate(hashes):
        groups.setdefault(root(i), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def write_report(
    content: dict, images: PathLike, out: PathLike, truth: Optional[dict] = None, seed: int = 0
) -> Tuple[dict, Optional[dict]]:
    """Write ``out`` (one html that needs nothing else) and beside it ``*_numbers.png`` and ``*_sheet.png``,
    unless that is among the images, which they would be taken for.

    Args:
        content: COCO-style, as ``find-objects`` writes it.
        images: Folder that its names are relative to.
        truth: Annotations of the same images to compare with.
        seed: Of the random boxes that stand beside the comparison.

    Returns:
        The numbers of :func:`summarise`, and the measures of :func:`recall_of` by row (None without ``truth``).
    """
    out = Path(out)
    numbers = summarise(content)
    measures = None
    if truth is not None:
        ids = common_images(content, truth)
        common, searched = len(ids), len(content['images'])
        names = {image['id']: image['file_name'] for image in truth['images']}
        pairs = [(image['file_name'], names[ids[image['id']]]) for image in content['images'] if image['id'] in ids]
        if line := told_of_other_folders('the annotations to compare with', pairs):
            print_log(line, logger='current', level=logging.WARNING)
        if common < searched:
            print_log(
                f'the annotations to compare with have {common} of the {searched} images: the measures are of these',
                logger='current',
                level=logging.WARNING,
            )
        measures = {
            'found': recall_of(content, truth),
            'random boxes of the same sizes': recall_of(random_boxes(content, seed), truth),
        }
    pictures, among = {}, is_searched(out, images)
    for name, figure in (('numbers', _charts(numbers)), ('sheet', _sheet(content, Path(images)))):
        pictures[name] = _png(figure)
        if not among:
            atomic_write(out.with_name(f'{out.stem}_{name}.png'), lambda file, name=name: file.write(pictures[name]))
    atomic_write_text(out, _page(content, numbers, measures, pictures))
    return numbers, measures


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _charts(numbers: dict) -> Figure:
    figure = _figure(12, 3)
    charts = [
        ('objects per image', numbers['per_image'], 'images'),
        ("object's side / image's side", numbers['side'], 'objects'),
        ('share of the image in boxes', numbers['coverage'], 'images'),
    ]
    if numbers['score'] is not None:
        charts.append(('score', numbers['score'], 'objects'))
    for axes, (title, values, unit) in zip(figure.subplots(1, len(charts)), charts):
        whole = title == 'objects per image'
        most = max(int(values.max(initial=0)), 1)
        bins = (
            np.arange(-0.5, most + 1.5, max(most // 40, 1))
            if whole
            else np.linspace(0, max(1.0, float(values.max(initial=0))), 41)
        )
        axes.hist(values, bins, color='#3b7dd8')
        axes.set_xlabel(title)
        axes.set_ylabel(unit)
    return figure


def _sheet(content: dict, folder: Path) -> Figure:
    by_image: Dict[object, List[dict]] = {}
    for entry in content['annotations']:
        by_image.setdefault(entry['image_id'], []).append(entry)
    reading = (content.get('info') or {}).get('reading') or {}
    count = min(SHEET, len(content['images']))
    chosen = [content['images'][i * len(content['images']) // count] for i in range(count)]
    columns = min(5, count)
    rows = -(-count // columns)
    figure = _figure(12, 2.6 * rows)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image in zip(figure.axes, chosen):
        try:
            axes.imshow(as_colours(read_image(folder / image['file_name'], **reading)))
        except BadImageError:
            axes.set_title('cannot be read', fontsize=8)
            continue
        entries = by_image.get(image['id'], [])
        best = sorted(entries, key=lambda entry: -entry.get('score', 1.0))[:DRAWN]
        for rank, entry in reversed(list(enumerate(best))):
            x, y, w, h = entry['bbox']
            colour = '#ffd000' if rank < 3 else '#00d0a0' if rank < 8 else '#1e90ff'
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, ec=colour, lw=2 if rank < 3 else 1))
        shown = f', best {len(best)} drawn' if len(entries) > len(best) else ''
        name = printable(Path(image['file_name']).name[:20])
        axes.set_title(f'{name}: {len(entries)}{shown}', fontsize=7, parse_math=False)  # in a name, $ begins no formula
    return figure


def _table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'

    return '<table>' + (line(head, 'th') if head else '') + ''.join(line(row, 'td') for row in rows) + '</table>'


def _page(content: dict, numbers: dict, measures: Optional[dict], pictures: Dict[str, bytes]) -> str:
    info = content.get('info') or {}
    bad, skipped = info.get('bad_images') or [], info.get('skipped') or []
    top = (info.get('settings') or {}).get('top') if 'images_at_top' in info else None
    median = float(np.median(numbers['per_image'])) if numbers['images'] else 0
    groups = numbers['duplicate_images']
    empty = {image['id'] for image in content['images']} - {entry['image_id'] for entry in content['annotations']}
    rows = [
        ('images', numbers['images']),
        ('objects', numbers['objects']),
        ('objects per image, mean / median', f'{numbers["objects"] / max(numbers["images"], 1):.2f} / {median:g}'),
        ('images without an object', numbers['empty']),
        (
            'small / medium / large objects (below 32², below 96², above, in pixels)',
            f'{numbers["small"]} / {numbers["medium"]} / {numbers["large"]}',
        ),
        ('share of an image in boxes, mean', f'{numbers["coverage"].mean() if numbers["images"] else 0:.1%}'),
        (f'pairs of boxes with IoU above {ALIKE_BOXES}', numbers['duplicate_boxes']),
        (
            'groups of images that look the same',
            f'{len(groups)} ({sum(map(len, groups))} images)'
            if 'dhash' in (content['images'] or [{}])[0]
            else 'not looked for',
        ),
        ('images that cannot be read', len(bad)),
        *([('annotations left out', len(skipped))] if skipped else []),
        *([(f'images at the limit of {top} objects (--top)', info['images_at_top'])] if top else []),
    ]
    parts = [f'<h1>Objects: {html.escape(str(info.get("source", "")))}</h1>', _table(rows)]
    if measures:
        names = list(next(iter(measures.values())))
        body = [
            [name, *('-' if row[name] is None else f'{row[name]:.1f}' for row in measures.values())] for name in names
        ]
        parts += [
            '<h2>Against annotations</h2>',
            '<p>In percent, labels ignored (pycocotools). AR: share of annotated objects met by one of the k best of '
            'an image, averaged over IoU 0.5 to 0.95 or at 0.5. Precision: share of the k best that meet an annotated '
            'object of their own at IoU 0.5; objects that are not annotated count as false. Merged: share of annotated '
            'objects that none of the 10 best meets, as one of them holds two objects or more.</p>',
            _table(body, ['', *measures]),
        ]
    for name, title in (
        ('numbers', 'Distributions'),
        ('sheet', 'Pictures (yellow: the three best; green: to the eighth; blue: others)'),
    ):
        parts.append(f'<h2>{title}</h2><img src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}">')
    lists = [
        ('Images without an object', [image['file_name'] for image in content['images'] if image['id'] in empty]),
        ('Images that cannot be read', [why for _, why in bad]),
        ('Annotations left out', skipped),
        ('Images that look the same', [', '.join(group) for group in groups]),
    ]
    for title, lines in lists:
        if lines:
            more = f'<li>... and {len(lines) - 50} more' if len(lines) > 50 else ''
            parts.append(f'<h2>{title}</h2><ul>{"".join(f"<li>{html.escape(line)}" for line in lines[:50])}{more}</ul>')
    parts.append(f'<h2>Settings</h2>{_table(sorted((info.get("settings") or {}).items()))}')
    style = (
        'body{font:15px/1.45 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 '
        '1em;color:#222}table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:.25em '
        '.7em;text-align:left}img{max-width:100%}h1,h2{font-weight:600}'
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Objects</title><style>{style}</style>'
    return f'{head}{"".join(parts)}</html>\n'
