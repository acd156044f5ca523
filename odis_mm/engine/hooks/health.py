"""A monitor of pretraining: cheap figures of a run with their good ranges, and a warning with a remedy when they show a
known fault."""

import math
import textwrap
from dataclasses import dataclass, field, fields, replace
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...utils.distributed import unwrap
from ...utils.errors import ConfigError

START_NORM = 'health_start_norm'  # in the message hub, hence in checkpoints: a resumed run compares with its own start
REMEDIES = {
    'uniform collapse': 'lower model.head.teacher_temp (0.04) or lengthen its warm-up, keep the teacher slower '
    '(model.momentum.start=0.9995 for small batches), halve the learning rate, use bf16 instead of fp16, or set '
    "model.head.balance='sinkhorn'",
    'one-prototype collapse': 'see that the teacher is centered (model.head.center_momentum=0.9, or '
    "balance='sinkhorn'), raise model.head.teacher_temp, halve the learning rate",
    'dimensional collapse': 'halve the learning rate, enlarge the batch, make the views differ more, and see that the '
    'images do differ',
    'divergence': 'go back to a checkpoint from before it, divide the learning rate by 2 to 10, lengthen the warm-up, '
    'lower optim_wrapper.clip_grad.max_norm, use bf16 instead of fp16',
    'no learning signal': 'see that images show their object in all global views (visible_share in TensorBoard or '
    'scalars.json; lower min_cover or the scale of the crops: `odis-mm pretrain` chooses both from the data), that the '
    'views overlap, and that the learning rate is not 0',
    'no attraction': 'the entropy term outweighs the attraction between the views: raise the weight of the attraction, '
    'lower that of the entropy (model.head.lambda_entropy), or take a larger batch',
    'starvation': 'raise train_dataloader.num_workers up to the number of cores, keep persistent_workers=True, or move '
    'the images to faster storage or a smaller size',
}


@dataclass(frozen=True)
class Limits:
    """Where a figure shows a fault. Healthy runs stay far from each."""

    entropy: float = 0.99  # of the teacher's distributions, in ln K
    loss: float = 0.03  # of the prototype loss, in ln K, around 1
    perplexity: float = 1.5  # prototypes in use
    rank: float = 1.5  # directions in which features differ
    spread: float = 1e-4  # share of the features' energy in which images differ
    diverged_loss: float = 1.3  # in ln K: a uniform guess costs 1
    growth: float = 5.0  # of the weights' norm since the start of the run
    similarity: float = 0.1  # of two views of an image
    data_wait: float = 0.5  # share of the time

    def faults(self, figures: 'Figures') -> Dict[str, str]:
        """Return the names of the faults that ``figures`` show, each with what shows it."""
        f = figures.with_nan()  # NaN compares as False: a figure that is not there shows nothing
        found = {}
        if f.growth > self.growth:
            found['divergence'] = f'the weights are {f.growth:.0f} times as large as at the start'
        elif f.prototype_loss > self.diverged_loss:
            found['divergence'] = f'the loss is {f.prototype_loss:.2f} ln K, and a uniform guess costs 1'
        if f.entropy > self.entropy and not abs(f.prototype_loss - 1) > self.loss:
            found['uniform collapse'] = (
                f'the teacher gives every image all prototypes alike (entropy {f.entropy:.3f} ln K)'
            )
        if f.prototypes < self.perplexity:
            found['one-prototype collapse'] = f'the teacher gives all images one prototype ({f.prototypes:.2f} in use)'
        if f.spread < self.spread:
            found['dimensional collapse'] = f'all images have one feature (they differ in {f.spread:.1e} of its energy)'
        elif f.rank < self.rank:
            found['dimensional collapse'] = f'the features of images differ in {f.rank:.2f} directions'
        if f.loss == 0 or f.gradient_norm == 0:
            found['no learning signal'] = (
                f'the {"loss" if f.loss == 0 else "gradient"} is exactly 0: no image of the batch counts'
            )
        if f.similarity < self.similarity:
            found['no attraction'] = f'two views of an image agree by {f.similarity:.2f} (1: the same)'
        if f.data_wait > self.data_wait:
            found['starvation'] = f'{f.data_wait:.0%} of the time goes into waiting for images'
        return found


def _figure(label: str, good: str = '') -> Any:
    """A field of :class:`Figures`: its name in the log, and its good range in terms of :class:`Limits`."""
    return field(default=None, metadata=dict(label=label, good=good))


@dataclass(frozen=True)
class Figures:
    """What is measured of a run; None where the model has no such figure."""

    prototype_loss: Optional[float] = _figure('loss/ln K', '< {diverged_loss:g}')
    entropy: Optional[float] = _figure('entropy/ln K', '< {entropy:g}')
    divergence: Optional[float] = _figure('KL')
    ema_distance: Optional[float] = _figure('EMA distance')
    prototypes: Optional[float] = _figure('prototypes in use', '> {perplexity:g}')
    rank: Optional[float] = _figure('feature rank', '> {rank:g}')
    spread: Optional[float] = _figure('feature spread', '> {spread:g}')
    growth: Optional[float] = _figure('weight growth', '< {growth:g}')
    loss: Optional[float] = _figure('loss', 'not 0; may be below 0')
    similarity: Optional[float] = _figure('similarity', '> {similarity:g}')
    gradient_norm: Optional[float] = _figure('gradient norm', 'not 0')
    empty_masks: Optional[float] = _figure('empty masks')
    data_wait: Optional[float] = _figure('data wait', '< {data_wait:g}')

    @classmethod
    def labelled(cls, values: Dict[str, float]) -> 'Figures':
        """Return the figures of a dict by label, as models give them; other labels are left out."""
        by_label = {entry.metadata['label']: entry.name for entry in fields(cls)}
        return cls(**{by_label[label]: value for label, value in values.items() if label in by_label})

    def measured(self) -> Iterator[Tuple[str, float, str]]:
        """Yield label, value and good range of what was measured."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None:
                yield entry.metadata['label'], value, entry.metadata['good']

    def line(self, limits: Limits) -> str:
        """Return the figures that have a bound for the log, each with its good range."""
        parts = [
            f'{label} {value:.3g} (good {good.format(**vars(limits))})'
            for label, value, good in self.measured()
            if good[:1] in ('<', '>')
        ]
        return ', '.join(parts)

    def with_nan(self) -> 'Figures':
        """Return the same with NaN for what was not measured."""
        return replace(self, **{entry.name: math.nan for entry in fields(self) if getattr(self, entry.name) is None})


@HOOKS.register_module()
class HealthHook(Hook):
    """Measure a teacher-student run every ``interval`` iterations, write one line, and warn when it shows a fault.

    Figures, each where the model has it: ``loss/ln K`` and ``entropy/ln K`` (1: uniform), ``KL`` of the student from
    the teacher, ``prototypes in use`` (perplexity of the mean teacher distribution), ``feature rank`` and ``feature
    spread`` of the teacher's features (:meth:`TeacherStudent.health`), ``gradient norm``, ``EMA distance`` |s - t|/|t|,
    ``weight growth`` of the student since the start, ``empty masks`` (share of objects without a patch) and ``data
    wait`` (share of the time). They go to the visualizer, and those that have a bound to the log.

    Only the last iteration of an interval is looked into; no figure changes the training.

    Args:
        interval: Iterations between two measurements.
        patience: A fault is told once so many measurements in a row show it, and again only after it has gone.
        grace: Share of the run at its start in which only the weights' growth and the waiting are judged: a fresh
            teacher may be nearly uniform, and a fresh student worse than one that guesses uniformly.
        limits: Overrides of the fields of :class:`Limits`: entropy, loss, perplexity, rank, spread, diverged_loss,
            growth, similarity, data_wait.

    Raises:
        ConfigError: numbers that cannot be used, or another kind of model.
    """

    priority = 'LOW'  # after the losses are logged

    def __init__(self, interval: int = 50, patience: int = 3, grace: float = 0.05, limits: Optional[dict] = None):
        if interval < 1 or patience < 1 or not 0 <= grace <= 1:
            raise ConfigError(
                f'HealthHook: interval and patience must be at least 1 and grace within [0, 1], got {interval}, '
                f'{patience}, {grace}.'
            )
        self.interval, self.patience, self.grace = interval, patience, grace
        self.limits = Limits(**(limits or {}))
        self.rows: Dict[str, int] = {}

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        if not hasattr(model, 'watch_health'):
            raise ConfigError(
                f'HealthHook watches TeacherStudent models, not {type(model).__name__}: remove the hook '
                '(default_hooks.health=None).'
            )
        info = runner.message_hub.runtime_info
        if START_NORM not in info:
            runner.message_hub.update_info(START_NORM, float(model.student_norm()))
        self._start_norm = info[START_NORM]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if (runner.iter + 1) % self.interval == 0:
            unwrap(runner.model).watch_health()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if (runner.iter + 1) % self.interval:
            return
        figures = self.measure(runner, data_batch, outputs or {})
        line = f'health: {figures.line(self.limits)}'
        runner.logger.info(textwrap.fill(line, 140, subsequent_indent=' ' * 8))
        runner.visualizer.add_scalars(
            {scalar(label): value for label, value, _ in figures.measured()}, step=runner.iter + 1
        )
        self.judge(runner, figures)

    def measure(self, runner, data_batch, outputs: dict) -> Figures:
        """Return the figures of this iteration; see the class."""
        model, hub = unwrap(runner.model), runner.message_hub
        seen = {name: float(value) for name, value in model.health().items()}
        entropy, uniform = seen.pop('entropy', None), math.log(seen.pop('num_prototypes', 2))
        found: Dict[str, float] = dict(growth=seen.pop('student_norm') / self._start_norm)
        if entropy is not None:
            found['entropy'] = entropy / uniform
            if outputs.get(model.prototype_loss) is not None:
                loss = _number(outputs[model.prototype_loss]) / model.prototype_weight
                found.update(prototype_loss=loss / uniform, divergence=loss - entropy)
        found.update({name: _number(outputs[name]) for name in ('loss', 'similarity') if name in outputs})
        if 'train/grad_norm' in hub.log_scalars:
            found['gradient_norm'] = float(hub.get_scalar('train/grad_norm').current())
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if isinstance(samples, dict) and 'object_mask' in samples:
            found['empty_masks'] = float((~samples['object_mask'][0].any(1)).float().mean())
        if 'train/time' in hub.log_scalars:
            seconds = hub.get_scalar('train/time').mean(self.interval)
            found['data_wait'] = hub.get_scalar('train/data_time').mean(self.interval) / max(seconds, 1e-9)
        return replace(Figures.labelled(seen), **found)

    def good_ranges(self) -> Dict[str, str]:
        """Return the good range of each figure that has one, by its name among the scalars; a figure that is logged at
        every step as well, by that name too."""
        known = {
            entry.metadata['label']: entry.metadata['good'].format(**vars(self.limits)) for entry in fields(Figures)
        }
        known = {label: good for label, good in known.items() if good}
        return {**{scalar(label): good for label, good in known.items()}, 'similarity': known['similarity']}

    def judge(self, runner, figures: Figures) -> None:
        """Count the measurements in a row that show a fault, and tell those that last."""
        if runner.iter < self.grace * runner.max_iters:
            figures = Figures(growth=figures.growth, data_wait=figures.data_wait)
        found = self.limits.faults(figures)
        for name in [name for name in self.rows if name not in found]:
            if self.rows.pop(name) >= self.patience:
                runner.logger.info(f'health: no sign of {name} any more')
        for name, why in found.items():
            self.rows[name] = self.rows.get(name, 0) + 1
            if self.rows[name] == self.patience:
                runner.logger.warning(
                    f'health: {name}: {why}, for {self.patience * self.interval} iterations by now. To try: '
                    f'{REMEDIES[name]}.'
                )


def scalar(label: str) -> str:
    """Return the name of a figure among the scalars of TensorBoard and ``scalars.json``."""
    return f'health/{label.replace(" ", "_")}'


def _number(value: Any) -> float:
    return float(torch.as_tensor(value).detach())
