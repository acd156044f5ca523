"""Differences of COCO AP with their uncertainty: over the images that were evaluated, and over seeds.

The images' part is a paired bootstrap: AP is recomputed on resampled images, on the same ones for all runs. The seeds'
parts are the variances between runs that differ in nothing but a seed, pooled over the starts of a table, since two or
three seeds alone say little about their own spread. The parts are added, and the interval is Student's with
Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946): where the seeds decide and are few, it is wide.
"""

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

from ..utils.files import PathLike

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
MAX_DETECTIONS = 100  # per image, COCO's


@dataclass
class CategoryMatches:
    """One category's detections on all images, best score first, as ``COCOeval`` matched them.

    Attributes:
        image: int [d], index of each detection's image.
        matched: bool [t, d], at each of t IoU thresholds.
        ignored: bool [t, d], of crowd regions and the like: neither right nor wrong.
        objects: int [images], objects to be found.
    """

    image: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass
class Matches:
    """All that COCO AP depends on, image by image."""

    image_ids: Tuple[Any, ...]
    names: Tuple[str, ...]
    categories: List[CategoryMatches]


def match(annotations: Union[PathLike, COCO], detections: Union[PathLike, List[dict]], kind: str = 'bbox') -> Matches:
    """Match detections to objects by ``COCOeval``.

    Args:
        annotations: COCO-style json.
        detections: COCO's result format: a file of it or its content.
        kind: 'bbox' or 'segm'.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = annotations if isinstance(annotations, COCO) else COCO(str(annotations))
        empty = isinstance(detections, list) and not detections
        found = COCO() if empty else truth.loadRes(detections if isinstance(detections, list) else str(detections))
        if empty:
            found.dataset = dict(images=truth.dataset['images'], annotations=[], categories=truth.dataset['categories'])
            found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ['all']
        evaluation.evaluate()
    images, thresholds = len(evaluation.params.imgIds), len(evaluation.params.iouThrs)
    categories = []
    for k in range(len(evaluation.params.catIds)):
        parts = [(i, e) for i, e in enumerate(evaluation.evalImgs[k * images : (k + 1) * images]) if e is not None]
        objects = np.zeros(images, int)
        for i, e in parts:
            objects[i] = np.count_nonzero(np.asarray(e['gtIgnore']) == 0)
        scores = np.concatenate([np.asarray(e['dtScores'], float) for _, e in parts] or [np.zeros(0)])
        order = np.argsort(-scores, kind='mergesort')
        image = np.concatenate([np.full(len(e['dtScores']), i) for i, e in parts] or [np.zeros(0, int)])[order]
        columns = [np.zeros((thresholds, 0), bool)]
        matched = np.concatenate(columns + [np.asarray(e['dtMatches'], bool) for _, e in parts], 1)[:, order]
        ignored = np.concatenate(columns + [np.asarray(e['dtIgnore'], bool) for _, e in parts], 1)[:, order]
        categories.append(CategoryMatches(image, matched & ~ignored, ignored, objects))
    names = tuple(c['name'] for c in truth.loadCats(evaluation.params.catIds))
    return Matches(tuple(evaluation.params.imgIds), names, categories)


def average_precision(
    matches: Matches, weights: Optional[np.ndarray] = None, thresholds: slice = slice(None), chunk: int = 128
) -> np.ndarray:
    """Return COCO AP in percent, over IoU 0.5 to 0.95, for each weighting of the images.

    An image of weight 3 counts as if it were there three times: the value is that of ``COCOeval`` on such a data set.

    Args:
        weights: int [b, images]; None: each image once, b = 1.
        thresholds: Which of the ten IoU thresholds; ``slice(0, 1)``: AP50.
        chunk: Weightings at a time, for memory.

    Returns:
        float [b]; NaN where no object is left.
    """
    if weights is None:
        weights = np.ones((1, len(matches.image_ids)), int)
    values = []
    for start in range(0, len(weights), chunk):
        part = weights[start : start + chunk].astype(np.float64)
        per_category = np.stack([_category_ap(c, part, thresholds) for c in matches.categories])  # [k, b]
        with np.errstate(invalid='ignore'):
            known = ~np.isnan(per_category)
            values.append(np.where(known, per_category, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))
    return 100 * np.concatenate(values)


def class_ap(matches: Matches) -> Dict[str, float]:
    """Return COCO AP in percent by class; a class without objects is left out."""
    ones = np.ones((1, len(matches.image_ids)))
    values = {n: 100 * float(_category_ap(c, ones, slice(None))[0]) for n, c in zip(matches.names, matches.categories)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _category_ap(category: CategoryMatches, weights: np.ndarray, thresholds: slice) -> np.ndarray:
    """float [b], NaN where the category has no object."""
    objects = weights @ category.objects  # [b]
    per_detection = weights[:, category.image]  # [b, d]
    total = np.zeros(len(weights))
    matched, ignored = category.matched[thresholds], category.ignored[thresholds]
    same = bool((ignored == ignored[:1]).all())
    counted = np.cumsum(per_detection * ~ignored[0], 1) if same else None
    for right, left_out in zip(matched, ignored):
        where = np.flatnonzero(right)  # precision is highest, and recall rises, at right detections alone
        if not len(where):
            continue
        all_counted = counted if same else np.cumsum(per_detection * ~left_out, 1)
        hits = np.cumsum(per_detection[:, where], 1)
        precision = hits / (all_counted[:, where] + np.spacing(1))
        with np.errstate(divide='ignore', invalid='ignore'):
            recall = hits / objects[:, None]
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = np.searchsorted(RECALLS, recall, side='right')  # thresholds of recall that are met
        total += (np.diff(reached, axis=1, prepend=0) * envelope).sum(1) / len(RECALLS)
    return np.where(objects > 0, total / len(matched), np.nan)


def resamples(images: int, count: int, seed: int = 0) -> np.ndarray:
    """Return int [count, images]: how often each image is in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)


@dataclass
class Runs:
    """AP in percent of one start's runs on the same images.

    Attributes:
        value: float [p, d], of p pretraining seeds and d detector seeds.
        boot: float [p, d, b], on the bootstrap samples, which are the same for all starts.
        images: Number of images that were evaluated.
        pretrained: Whether a pretraining seed could make a difference.
    """

    value: np.ndarray
    boot: np.ndarray
    images: int
    pretrained: bool = True

    @property
    def mean(self) -> float:
        return float(self.value.mean())


@dataclass(frozen=True)
class Difference:
    """How far one start is above another, in points of AP, and where its variance comes from.

    Attributes:
        value: Mean difference.
        low, high: Ends of the interval.
        parts: Variance of the mean difference by source: 'images', 'detector seeds', 'pretraining seeds'; NaN: not
            measured.
        freedom: Degrees of freedom.
    """

    value: float
    low: float
    high: float
    parts: Dict[str, float]
    freedom: float

    @property
    def verdict(self) -> str:
        return 'above' if self.low > 0 else 'below' if self.high < 0 else 'no difference shown'


def difference(table: Dict[str, Runs], a: str, b: str, confidence: float = 0.95) -> Difference:
    """Return how far start ``a`` is above ``b``, with its uncertainty; the other starts of the table serve to estimate
    the seeds' part."""
    x, y = table[a], table[b]
    gap = x.mean - y.mean
    with np.errstate(invalid='ignore'):
        boot = np.nanvar(x.boot.mean((0, 1)) - y.boot.mean((0, 1)), ddof=1) if x.boot.shape[-1] > 1 else math.nan
    others = x.images - 1  # resampling n images gives (n - 1)/n of the variance, with n - 1 degrees of freedom
    boot = boot * x.images / others if others else math.nan
    detector, detector_freedom = _detector_variance(table)
    pretraining, pretraining_freedom = _pretraining_variance(table)
    share = sum(1 / len(runs.value) for runs in (x, y) if runs.pretrained)
    parts = {
        'images': (float(boot), max(others, 1)),
        'detector seeds': (2 * detector / x.value.shape[1], detector_freedom),
        'pretraining seeds': (pretraining * share if share else 0.0, pretraining_freedom if share else 1e6),
    }
    known = [(variance, freedom) for variance, freedom in parts.values() if not math.isnan(variance)]
    total = sum(variance for variance, _ in known)
    spread = sum(variance**2 / freedom for variance, freedom in known)
    freedom = total**2 / spread if spread > 0 else 1e6
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(total)
    return Difference(gap, gap - reach, gap + reach, {name: part for name, (part, _) in parts.items()}, freedom)


def _detector_variance(table: Dict[str, Runs]) -> Tuple[float, int]:
    """Variance between detector seeds beyond what all starts share, such as the choice of labelled images; and its
    degrees of freedom."""
    rows = [runs.value.mean(0) for runs in table.values()]
    width = min(len(row) for row in rows)
    if width < 2 or len(rows) < 2:
        return math.nan, 1
    cells = np.stack([row[:width] for row in rows])  # [starts, d]
    rest = cells - cells.mean(1, keepdims=True) - cells.mean(0, keepdims=True) + cells.mean()
    freedom = (cells.shape[0] - 1) * (width - 1)
    return float((rest**2).sum() / freedom), freedom


def _pretraining_variance(table: Dict[str, Runs]) -> Tuple[float, int]:
    groups = [runs.value.mean(1) for runs in table.values() if runs.pretrained and len(runs.value) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan, 1
    return float(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom), freedom


def labels_worth(labels: Sequence[float], reference: Sequence[float], value: float) -> Optional[float]:
    """Return with how many labels the reference curve reaches ``value``: linear in AP over the logarithm of the labels.

    None: above or below all that was measured.
    """
    order = np.argsort(labels)
    x, y = np.log(np.asarray(labels, float)[order]), np.asarray(reference, float)[order]
    if len(x) < 2 or not y[0] <= value <= y.max():
        return None
    for i in range(len(x) - 1):
        if y[i] <= value <= y[i + 1]:
            share = (value - y[i]) / (y[i + 1] - y[i]) if y[i + 1] > y[i] else 0.0
            return float(np.exp(x[i] + share * (x[i + 1] - x[i])))
    return None


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if one side does not vary."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(stats.spearmanr(a, b).statistic)
