"""What the hooks that measure frozen features during pretraining share."""

import json
import time
from abc import abstractmethod
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import MODELS

from ...evaluation.frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenBackbone
from ...transfer import save_backbone
from ...transfer.build import initialise
from ...utils.distributed import unwrap
from ...utils.errors import ConfigError
from ..card import METRICS
from .export import backbone_meta, reading_meta

Describe = Callable[[str], Tuple[str, str]]


class FrozenMetricHook(Hook):
    """Measures a frozen backbone every so often, beside what it was before training.

    The values go to the log, to the visualizer (TensorBoard, W&B), and with their whole history to ``<name>.json`` and
    ``<name>.png`` in the work dir. Weights, modes and the global random numbers of the training are as before. All
    ranks share the work and hold the same result.

    Args:
        interval: Epochs (iterations with ``by_epoch=False``) between two measurements; the start and the end of
            training are measured, too.
        by_epoch: Count epochs.
        of: 'teacher' or 'student'.
        random_baseline: Where the backbone starts from a file, measure one of the config's kind with random weights
            (seed 0), too. Else it is itself random at first: other random weights are points apart from it.
        keep_best: Write the measured backbone whose metrics are best on average as ``best_<name>_backbone.pth`` to the
            work dir.

    Where a backbone starts from a file, the log warns when it gets worse than it was at the start.

    Raises:
        ConfigError: an interval below 1, another ``of``, or a model that it cannot measure (another kind, or sharded).
    """

    worse = 1.0  # points of the metrics' mean below the start that are told as a loss

    name: str
    priority = 'LOW'  # before checkpoints (VERY_LOW) and exports (LOWEST), whose cards tell the metrics

    def __init__(
        self,
        interval: int = 10,
        by_epoch: bool = True,
        of: str = 'teacher',
        random_baseline: bool = True,
        keep_best: bool = False,
    ):
        if of not in ('teacher', 'student'):
            raise ConfigError(f"{type(self).__name__}: of must be 'teacher' or 'student', got {of!r}.")
        if interval < 1:
            raise ConfigError(f'{type(self).__name__}: interval must be at least 1, got {interval}.')
        self.interval, self.by_epoch, self.of, self.random_baseline = interval, by_epoch, of, random_baseline
        self.keep_best = keep_best

    @abstractmethod
    def prepare(self, frozen: FrozenBackbone) -> None:
        """Open the data; called once, before training."""

    @abstractmethod
    def measure(self, frozen: FrozenBackbone) -> Dict[str, float]:
        """Return the metrics of a backbone by name, equal on all ranks."""

    def trivial(self) -> Dict[str, Tuple[str, float]]:
        """Return what an answer that looks at no feature reaches, a name and a value, by metric."""
        return {}

    def describe(self, key: str) -> Tuple[str, str]:
        """Return title and unit of a metric, for plots."""
        return key, '%'

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        if not hasattr(model, 'branch'):
            raise ConfigError(
                f'{type(self).__name__} measures TeacherStudent models, not {type(model).__name__}: remove it from the '
                'hooks.'
            )
        if any(hasattr(p, 'full_tensor') for p in model.parameters()):
            raise ConfigError(
                f'{type(self).__name__} cannot measure a sharded model, whose ranks must all see as many images: '
                'remove it from the hooks, and measure the exports by odis-mm knn or odis-mm regions.'
            )
        self.prepare(self._frozen(runner, model.branch(self.of)))
        self._file = Path(runner.work_dir, f'{self.name}.json')
        self._record = dict(of=self.of, random=None, start=None, trivial=self.trivial(), history=[])
        if runner.iter and self._file.is_file():  # resumed
            kept = json.loads(self._file.read_text())
            self._record.update(
                random=kept['random'],
                start=kept.get('start'),
                history=[point for point in kept['history'] if point['iteration'] <= runner.iter],
            )
        elif runner.iter:  # resumed from another folder, or the record is gone
            self._take_start(runner)
        if self.random_baseline and self._record['random'] is None and _loaded(runner):
            self._record['random'] = self.measure(self._frozen(runner, self._random_twin(runner, model)))
            runner.logger.info(f'{self.name} of random weights: {_words(self._record["random"])}')
        self._begin, self._spent = time.perf_counter(), 0.0
        if not self._record['history']:  # what training starts from
            self._run(runner, trained=False)

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch and (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            self._run(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._run(runner)

    def _run(self, runner, trained: bool = True) -> None:
        begin = time.perf_counter()
        metrics = self.measure(self._frozen(runner, unwrap(runner.model).branch(self.of)))
        # the counters of epochs and iterations move only after the hooks
        iteration = runner.iter + (trained and not self.by_epoch)
        epoch = runner.epoch + (trained and self.by_epoch)
        seconds = time.perf_counter() - begin
        self._spent += seconds
        self._record['history'].append(dict(iteration=iteration, epoch=epoch, seconds=round(seconds, 3), **metrics))
        runner.message_hub.update_info(
            METRICS,
            {
                **runner.message_hub.runtime_info.get(METRICS, {}),
                **{f'{self.name}/{key}': value for key, value in metrics.items()},
            },
        )
        runner.visualizer.add_scalars({f'{self.name}/{key}': value for key, value in metrics.items()}, step=iteration)
        share = self._spent / (time.perf_counter() - self._begin)
        beside = {}
        for name in ('random', 'start'):
            if self._record[name] is not None:
                beside = {key: f' ({name} {self._record[name][key]:.1f})' for key in metrics}
        if not iteration:
            self._record['start' if _loaded(runner) else 'random'] = metrics
        runner.logger.info(
            f'{self.name} of the {self.of}: {_words(metrics, beside)}; {seconds:.1f} s, '
            f'{100 * share:.0f} % of the run so far'
        )
        if trained:
            self._judge(runner, metrics)
            if self.keep_best and self._is_best(metrics):
                self._save_best(runner, iteration, metrics)
        if is_main_process():
            partial = self._file.with_suffix('.tmp')
            partial.write_text(json.dumps(self._record, indent=1))
            partial.replace(self._file)
            plot_history(self._record, str(self._file.with_suffix('.png')), self.name, self.describe)

    def _take_start(self, runner) -> None:
        """Of a run that goes on in another folder: what it began from is in the record beside its checkpoint."""
        file = Path(runner._load_from or self._file).with_name(self._file.name)
        if file.is_file():
            kept = json.loads(file.read_text())
            self._record.update(random=kept['random'], start=kept.get('start'))
            runner.logger.info(f'{self.name}: what the run began from is taken from {file}')
        elif _from_file(runner):
            runner.logger.warning(
                f'{self.name}: what the run began from is not known, as there is no {file}: weights that get worse '
                'than it are not told. Copy that file there to have it compared.'
            )

    def _judge(self, runner, metrics: Dict[str, float]) -> None:
        """Warns where the weights are worse than those that the run started from."""
        start = self._record['start']
        if start is None or _mean(metrics) >= _mean(start) - self.worse:
            return
        lost = ', '.join(f'{key} {value:.1f} from {start[key]:.1f}' for key, value in metrics.items())
        runner.logger.warning(
            f'health: the weights are getting worse than what you started with: {lost}. To try: a tenth of the '
            'learning rate, a slower teacher (model.momentum.start=0.9995), warmer heads '
            '(default_hooks.schedule.warm_heads=0.2), a smaller layer_decay_rate, fewer trained blocks '
            '(model.backbone.frozen), or a shorter run; the best export so far is kept with keep_best=True.'
        )

    def _is_best(self, metrics: Dict[str, float]) -> bool:
        before = [{key: point[key] for key in metrics} for point in self._record['history'][:-1] if point['iteration']]
        return all(_mean(metrics) > _mean(other) for other in before)

    def _save_best(self, runner, iteration: int, metrics: Dict[str, float]) -> None:
        model = unwrap(runner.model)
        path = Path(runner.work_dir, f'best_{self.name}_backbone.pth')
        state = model.branch(self.of).state_dict()
        if is_main_process():
            meta = dict(method=type(model).__name__, iteration=iteration)
            meta.update(backbone_meta(model), **reading_meta(runner.cfg))
            save_backbone(path, state, {**meta, **{key: float(value) for key, value in metrics.items()}})
            runner.logger.info(f'{self.name}: best so far, exported to {path}')

    @staticmethod
    def _frozen(runner, backbone: torch.nn.Module) -> FrozenBackbone:
        preprocessor = getattr(unwrap(runner.model), 'data_preprocessor', None)
        return FrozenBackbone(
            backbone,
            getattr(preprocessor, 'mean', IMAGENET_MEAN),
            getattr(preprocessor, 'std', IMAGENET_STD),
            reading_meta(runner.cfg).get('reading'),
        )

    @staticmethod
    def _random_twin(runner, model) -> torch.nn.Module:
        config = runner.cfg.get('model')
        if not isinstance(config, dict) or 'backbone' not in config:
            raise ConfigError(
                'the value of random weights needs the model as a config; '
                'set random_baseline=False for a model built by hand.'
            )
        device = next(model.parameters()).device
        # drawn in host memory; with the GPUs' generators torch warns where there are several
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            twin = MODELS.build({key: value for key, value in config['backbone'].items() if key != 'init_cfg'})
            initialise(twin)
        return twin.to(device)


def _from_file(runner) -> bool:
    """Whether the backbone started from a file."""
    return isinstance(getattr(unwrap(runner.model).backbone, 'init_cfg', None), dict)


def _loaded(runner) -> bool:
    """Whether training starts from a file, of the backbone or of all."""
    return _from_file(runner) or (runner._load_from is not None and not runner._resume)


def _mean(metrics: Dict[str, float]) -> float:
    return sum(metrics.values()) / len(metrics)


def _words(metrics: Dict[str, float], beside: Dict[str, str] = {}) -> str:
    return ', '.join(f'{key} {value:.1f}{beside.get(key, "")}' for key, value in metrics.items())


def plot_history(record: dict, path: str, name: str, describe: Describe = lambda key: (key, '%')) -> None:
    """Draw each metric over the iterations, from the one before training on, beside what is reached without
    pretraining, as a PNG.

    Args:
        record: ``of``, ``history`` (points with ``iteration`` and the metrics), ``random`` (metrics of random weights,
            or None) and, by metric, ``trivial`` (what an answer that looks at no feature reaches: a name and a value).
        path: File to write.
        name: Of the measure.
        describe: Title and unit of a metric by its key.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history, random, trivial = record['history'], record['random'], record.get('trivial', {})
    keys = [key for key in history[-1] if key not in ('iteration', 'epoch', 'seconds')]
    columns, rows = min(len(keys), 4), -(-len(keys) // 4)
    figure = Figure(figsize=(max(3.4 * columns, 4.5), 2.8 * rows + 0.7), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    lines = {}
    for ax, key in zip(axes, keys):
        points = [(point['iteration'], point[key]) for point in history if key in point]
        lines[f'the {record["of"]}'] = ax.plot(*zip(*points), marker='.', color='C0')[0]
        if random is not None and key in random:
            lines['random weights'] = ax.axhline(random[key], color='gray', linestyle='--')
        if record.get('start') is not None:
            lines['starting weights'] = ax.axhline(record['start'][key], color='tab:green', linestyle='-.')
        if key in trivial:
            what, level = trivial[key]
            lines[what] = ax.axhline(level, color='C3' if what == 'chance' else 'C1', linestyle=':')
        title, unit = describe(key)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel('iteration', fontsize=8)
        ax.set_ylabel(unit, fontsize=8)
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.ticklabel_format(useOffset=False)  # percent as they are, also of values that hardly differ
    for ax in axes[len(keys) :]:
        ax.set_axis_off()
    figure.suptitle(f'{name} of the {record["of"]}, frozen', fontsize=10)
    figure.legend(lines.values(), lines.keys(), loc='outside lower center', ncols=len(lines), fontsize=8)
    figure.savefig(path)
