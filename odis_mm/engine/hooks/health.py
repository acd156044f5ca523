"""A monitor with an opinion: cheap figures of a run, and a verdict in plain words when a known sickness shows."""

import math
from dataclasses import dataclass
from typing import Dict, Optional

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...utils.distributed import unwrap
from ...utils.errors import ConfigError

START_NORM = 'health_start_norm'  # in the message hub, hence in checkpoints: a resumed run compares with its own start
CURES = {
    'uniform collapse': 'lower model.head.teacher_temp (0.04) or lengthen its warm-up, keep the teacher slower (model.momentum.start=0.9995 for '
    "small batches), halve the learning rate, use bf16 instead of fp16, or set model.head.balance='sinkhorn'",
    'one-prototype collapse': "see that the teacher is centered (model.head.center_momentum=0.9, or balance='sinkhorn'), raise "
    'model.head.teacher_temp, halve the learning rate',
    'dimensional collapse': 'halve the learning rate, enlarge the batch, make the views differ more, and see that the images do differ',
    'divergence': 'go back to a checkpoint from before it, divide the learning rate by 2 to 10, lengthen the warm-up, lower '
    'optim_wrapper.clip_grad.max_norm, use bf16 instead of fp16',
    'no learning signal': 'see that images show their object in all global views (visible_share in the log; lower min_cover or the '
    'scale of the crops: `odis-mm pretrain` chooses both from the data), that the views overlap, and that the learning rate is not 0',
    'no attraction': 'the entropy term outweighs the attraction between the views: raise the weight of the attraction, lower that of the '
    'entropy (model.head.lambda_entropy), or take a larger batch',
    'starvation': 'raise train_dataloader.num_workers up to the number of cores, keep persistent_workers=True, or move the images to faster '
    'storage or a smaller size',
}


@dataclass(frozen=True)
class Limits:
    """Where a figure is a sign of sickness. Healthy runs stay far from each."""

    entropy: float = 0.99  # of the teacher's distributions, in ln K
    loss: float = 0.03  # of the prototype loss, in ln K, around 1
    perplexity: float = 1.5  # prototypes in use
    rank: float = 1.5  # directions in which features differ
    spread: float = 1e-4  # share of the features' energy in which images differ
    diverged_loss: float = 1.3  # in ln K: knowing nothing costs 1
    growth: float = 5.0  # of the weights' norm since the start of the run
    similarity: float = 0.1  # of two views of an image
    data_wait: float = 0.5  # share of the time

    def sickness(self, figures: Dict[str, float]) -> Dict[str, str]:
        """Names of the sicknesses that ``figures`` show, each with what shows it."""
        nan = math.nan  # compares as False: a figure that is not there shows nothing
        entropy, loss = figures.get('entropy/ln K', nan), figures.get('loss/ln K', nan)
        perplexity, rank, spread = (
            figures.get(key, nan) for key in ('prototypes in use', 'feature rank', 'feature spread')
        )
        growth, wait = figures.get('weight growth', nan), figures.get('data wait', nan)
        found = {}
        if growth > self.growth:
            found['divergence'] = f'the weights are {growth:.0f} times as large as at the start'
        elif loss > self.diverged_loss:
            found['divergence'] = f'the loss is {loss:.2f} ln K, and knowing nothing costs 1'
        if entropy > self.entropy and not abs(loss - 1) > self.loss:
            found['uniform collapse'] = (
                f'the teacher gives every image all prototypes alike (entropy {entropy:.3f} ln K)'
            )
        if perplexity < self.perplexity:
            found['one-prototype collapse'] = f'the teacher gives all images one prototype ({perplexity:.2f} in use)'
        if spread < self.spread:
            found['dimensional collapse'] = f'all images have one feature (they differ in {spread:.1e} of its energy)'
        elif rank < self.rank:
            found['dimensional collapse'] = f'the features of images differ in {rank:.2f} directions'
        if figures.get('loss', nan) == 0 or figures.get('gradient norm', nan) == 0:
            which = 'loss' if figures.get('loss', nan) == 0 else 'gradient'
            found['no learning signal'] = f'the {which} is exactly 0: no image of the batch counts'
        if figures.get('similarity', nan) < self.similarity:
            found['no attraction'] = f'two views of an image agree by {figures["similarity"]:.2f} (1: the same)'
        if wait > self.data_wait:
            found['starvation'] = f'{wait:.0%} of the time goes into waiting for images'
        return found


@HOOKS.register_module()
class HealthHook(Hook):
    """Measures a teacher-student run every ``interval`` iterations, writes one line, and warns when it is sick.

    Figures, each where the model has it: ``loss/ln K`` and ``entropy/ln K`` (1: uniform), ``KL`` of the student from the teacher,
    ``prototypes in use`` (perplexity of the mean teacher distribution), ``feature rank`` and ``feature spread`` of the teacher's features
    (:meth:`TeacherStudent.health`), ``gradient norm``, ``EMA distance`` |s - t|/|t|, ``weight growth`` of the student since the start,
    ``empty masks`` (share of objects without a patch) and ``data wait`` (share of the time). They go to the log and the visualizer.

    Only the last iteration of an interval is looked into; no figure changes the training.

    Args:
        interval: Iterations between two measurements.
        patience: A sickness is told once so many measurements in a row show it, and again only after it has gone.
        grace: Share of the run at its start in which only the weights' growth and the waiting are judged: a fresh teacher may be nearly
            uniform, and a fresh student worse than one that knows nothing.
        limits: Overrides of :class:`Limits`.
    """

    priority = 'LOW'  # after the losses are logged

    def __init__(self, interval: int = 50, patience: int = 3, grace: float = 0.05, limits: Optional[dict] = None):
        if interval < 1 or patience < 1 or not 0 <= grace <= 1:
            raise ConfigError(
                f'HealthHook: interval and patience must be at least 1 and grace within [0, 1], got {interval}, {patience}, '
                f'{grace}.'
            )
        self.interval, self.patience, self.grace = interval, patience, grace
        self.limits = Limits(**(limits or {}))
        self.rows: Dict[str, int] = {}

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        if not hasattr(model, 'watch_health'):
            raise ConfigError(
                f'HealthHook watches TeacherStudent models, not {type(model).__name__}: remove the hook (default_hooks.health=None).'
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
        runner.logger.info('health: ' + ', '.join(f'{name} {value:.3g}' for name, value in figures.items()))
        runner.visualizer.add_scalars(
            {f'health/{name.replace(" ", "_")}': value for name, value in figures.items()}, step=runner.iter + 1
        )
        self.judge(runner, figures)

    def measure(self, runner, data_batch, outputs: dict) -> Dict[str, float]:
        """The figures by name; see the class."""
        model, hub = unwrap(runner.model), runner.message_hub
        seen = {name: float(value) for name, value in model.health().items()}
        figures = {}
        entropy, uniform = seen.pop('entropy', None), math.log(seen.pop('num_prototypes', 2))
        loss = outputs.get(model.prototype_loss) if entropy is not None else None
        if loss is not None:
            loss = float(torch.as_tensor(loss).detach()) / model.prototype_weight
            figures['loss/ln K'] = loss / uniform
        if entropy is not None:
            figures['entropy/ln K'] = entropy / uniform
        if loss is not None:
            figures['KL'] = loss - entropy
        norm = seen.pop('student_norm')
        figures.update(seen)
        figures['weight growth'] = norm / self._start_norm
        for name in ('loss', 'similarity'):
            if name in outputs:
                figures[name] = float(torch.as_tensor(outputs[name]).detach())
        if 'train/grad_norm' in hub.log_scalars:
            figures['gradient norm'] = float(hub.get_scalar('train/grad_norm').current())
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if isinstance(samples, dict) and 'object_mask' in samples:
            figures['empty masks'] = float((~samples['object_mask'][0].any(1)).float().mean())
        if 'train/time' in hub.log_scalars:
            seconds = hub.get_scalar('train/time').mean(self.interval)
            figures['data wait'] = hub.get_scalar('train/data_time').mean(self.interval) / max(seconds, 1e-9)
        return figures

    def judge(self, runner, figures: Dict[str, float]) -> None:
        """Counts the measurements in a row that show a sickness, and tells those that last."""
        if runner.iter < self.grace * runner.max_iters:
            figures = {name: figures[name] for name in ('weight growth', 'data wait') if name in figures}
        found = self.limits.sickness(figures)
        for name in [name for name in self.rows if name not in found]:
            if self.rows.pop(name) >= self.patience:
                runner.logger.info(f'health: no sign of {name} any more')
        for name, why in found.items():
            self.rows[name] = self.rows.get(name, 0) + 1
            if self.rows[name] == self.patience:
                runner.logger.warning(
                    f'health: {name}: {why}, for {self.patience * self.interval} iterations by now. To try: {CURES[name]}.'
                )
