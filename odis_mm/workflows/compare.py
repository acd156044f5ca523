"""The comparison of starts: stages made of the commands that users type, and what comes out of them."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import statistics
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from mmengine.config import Config

from ..config import load_config
from ..datasets.layout import Split
from ..recipes import (
    SMALL_DETECTORS,
    backbone_settings,
    detector_config,
    fitting_size,
    pretraining_config,
    read_content,
)
from ..transfer import read_checkpoint, read_meta
from ..transfer.resnet import find_resnet
from ..utils.environment import detectors_lack_gpu
from ..utils.errors import ConfigError, StageError
from ..utils.paths import detector_name
from .data import Prepared, content_hash, write_once
from .plan import Plan, Start, Step, as_plain, resolve, slug
from .stages import Stage, Stages, Worker, exports, remove_attempt, scalars
from .tune import best_trial, draw_trials, tunable

PROBE_STEPS = 12  # iterations by which the speed is measured; the first third is left out
PROBE_MINUTES = 0.5  # of such a training on one core, most of it for its start
PROBE_IMAGES = 32  # images by which the speed of the evaluation is measured
CHECKPOINTS = 10  # of a pretraining, so that a killed one loses little
TUNING_SEED = 100  # of trials: the final runs have others
AP_KEYS = {'box AP': 'coco/bbox_mAP', 'box AP50': 'coco/bbox_mAP_50', 'mask AP': 'coco/segm_mAP'}
_configs = threading.RLock()  # mmengine's registries have one default scope for the whole process


@dataclass(frozen=True)
class DetectorRun:
    """A cell of the tables: which start, pretraining seed, percent of the labels, detector seed, share of the
    pretraining, and how many times the iterations of the detector."""

    start: str
    pretraining_seed: int
    percent: float
    seed: int
    share: float = 1.0
    times: int = 1


class Comparison:
    """The stages of a plan.

    Args:
        plan: What to compare.
        data: See :func:`prepare`.
        stages: Runs them.

    Attributes:
        detectors_on_cpu: There are GPUs, which detectors cannot use.
        notes: What else there is to know, of the data and of this machine.
    """

    def __init__(self, plan: Plan, data: Prepared, stages: Stages):
        if data.mixed and plan.detector.config is None:  # else a subset of the labels would choose, each its own
            plan = dataclasses.replace(plan, detector=dataclasses.replace(plan.detector, config='faster-rcnn_small'))
        self.plan, self.data, self.stages = plan, data, stages
        self.detectors_on_cpu, self.notes = bool(stages.gpus) and detectors_lack_gpu(), list(data.notes)
        if self.detectors_on_cpu:
            self.notes.append(
                "mmcv's operators are compiled for CPUs alone here, so all detectors train on the CPU; `odis-mm "
                'doctor` prints how to compile them for the GPU'
            )
        self._contents: Dict[str, str] = {}
        self.evaluated = plan.evaluate or ('test' if data.test and plan.tuning.trials else 'val')
        if self.evaluated == 'test' and data.test is None:
            raise ConfigError('evaluate: test, but the data has no test split.')
        self.probes: Dict[str, Stage] = {}
        for start in plan.starts:
            for step in start.recipes:
                if self._speed_key(step, start) not in self.probes:
                    self.probes[self._speed_key(step, start)] = self._probe(step, start)
        files = dict.fromkeys([None, *map(_first_file, plan.starts)])
        self.detector_probes = {file: self._detector_probe(file, number) for number, file in enumerate(files, 1)}
        self._detector_files: Dict[str, Optional[str]] = {}  # of the stages of detectors, by name: see detector_probe
        self.tuned = {start.name: self._tuned(start) for start in plan.starts} if plan.tuning.trials else {}
        self.pretrainings = {
            (start.name, seed): self._pretraining(start, seed)
            for start in plan.starts
            if start.recipes
            for seed in range(plan.seeds.pretraining)
        }
        self.runs = {run: self._detector(run) for run in self._cells()}
        self.measures = {
            (start.name, seed, share): self._measure(start, seed, share)
            for start in plan.starts
            for seed, share in self._measured(start)
            if plan.measures
        }

    def all(self) -> List[Stage]:
        return [*self.probes.values(), *self.detector_probes.values(), *self.runs.values(), *self.measures.values()]

    def told_boxes(self) -> List[str]:
        """Starts whose pretraining draws its views around annotated boxes."""
        found = []
        for start in self.plan.starts:
            for step in start.recipes:
                with _configs:
                    pipeline = load_config(step.recipe, dict(step.options)).train_dataloader.dataset.pipeline
                aware = any(s.get('object_aware') and s.get('target_rule') != 'whole_image' for s in pipeline)
                if step.boxes and aware and not _own_data(step) and start.name not in found:
                    found.append(start.name)
        return found

    def own_data(self) -> Dict[str, str]:
        """Starts whose options name other annotations or images for the pretraining, to their paths."""
        found = {start.name: sum(map(_own_data, start.steps), []) for start in self.plan.starts}
        return {name: ', '.join(paths) for name, paths in found.items() if paths}

    def timing(self) -> List[Stage]:
        """Stages by which the speed is known; the others can be estimated from them."""
        return [*self.probes.values(), *self.detector_probes.values()]

    def measure_speed(self) -> None:
        """Run the stages by which the speed is known, after a line that tells of them."""
        missing = [stage.name for stage in self.timing() if self.stages.result(stage) is None]
        if missing:
            minutes = PROBE_MINUTES * math.ceil(len(missing) / self.stages.jobs)
            self.stages.say(
                f'measuring the speed of this machine first, by trainings of {PROBE_STEPS} steps '
                f'({", ".join(name.removeprefix("speed_") for name in missing)}); on CPUs this takes about '
                f'{minutes:g} minutes'
            )
        self.stages.run(self.timing())

    def run(self) -> Dict[str, dict]:
        """Results of all stages by name."""
        self.measure_speed()
        return self.stages.run(self.all(), self.estimate)

    def estimate(self, stage: Stage) -> Optional[float]:
        """Minutes of a stage on one worker, from the speeds that were measured; None before they were."""
        kind = stage.settings.get('kind')
        if kind == 'detector':
            speed = self.stages.result(self.detector_probes[self._detector_files[stage.name]])
            if speed is None:
                return None
            images = self.data.images['val' if stage.settings.get('on') == 'val' else self.evaluated]
            iterations = stage.settings.get('detector', {}).get('iterations', self.plan.detector.iterations)
            seconds = speed['startup'] + speed['iteration'] * iterations + speed['image'] * images
            return seconds / 60
        if kind in ('pretraining', 'trial'):
            start = self.plan.start(stage.settings['start'])
            minutes = 0.0
            for step in start.recipes:
                speed = self.stages.result(self.probe(step, start))
                if speed is None:
                    return None
                iterations = self._iterations(step, start, speed) * stage.settings['share']
                minutes += (speed['startup'] + speed['iteration'] * iterations) / 60
            return minutes
        return {'measure': 0.5, 'probe': PROBE_MINUTES}.get(kind, 0.0)

    def minutes(self) -> Optional[float]:
        """Of all that is not done yet, by the estimates, with all workers busy."""
        left = [self.estimate(stage) for stage in self.everything() if self.stages.result(stage) is None]
        return None if any(m is None for m in left) else sum(left) / self.stages.jobs

    def everything(self) -> List[Stage]:
        """All stages and what they need, each once."""
        found: Dict[str, Stage] = {}

        def add(stage: Stage) -> None:
            for need in stage.needs:
                add(need)
            found[stage.name] = stage

        for stage in self.all():
            add(stage)
        return list(found.values())

    def _cells(self) -> List[DetectorRun]:
        plan, cells = self.plan, []
        if plan.detector.longer:  # first, since it takes the longest
            cells.append(DetectorRun(plan.reference, 0, max(plan.labels), 0, times=plan.detector.longer))
        middle = sorted(plan.labels)[(len(plan.labels) - 1) // 2]
        for percent in plan.labels:
            for start in plan.starts:
                for p in range(plan.seeds.pretraining if start.recipes else 1):
                    cells += [DetectorRun(start.name, p, percent, d) for d in range(plan.seeds.detector)]
        for share in plan.pretraining.lengths:
            for start in plan.starts:
                if start.recipes and share < 1:
                    cells += [
                        DetectorRun(start.name, p, middle, d, share)
                        for p in range(plan.seeds.pretraining)
                        for d in range(plan.seeds.detector)
                    ]
        return cells

    def _iterations(self, step: Step, start: Start, speed: Optional[dict]) -> int:
        budget, total = self.plan.pretraining, sum(part.share for part in start.recipes)
        whole = budget.iterations
        if whole is None:
            whole = 60 * budget.minutes / speed['iteration']
        return max(4, round(whole * step.share / total))

    def _content(self, config: str) -> str:
        """Hash of a config, so that a changed one makes other stages."""
        if config not in self._contents:
            with _configs:
                self._contents[config] = content_hash(load_config(config).to_dict())
        return self._contents[config]

    def _recipe_settings(self, step: Step, options: Optional[dict] = None) -> dict:
        """What of a recipe a result depends on; read now, so that a changed config is another stage."""
        return dict(
            recipe=step.recipe,
            content=self._content(step.recipe),
            options={**step.options, **(options or {})},
            data=self.data.identity['pretraining'],
            boxes=step.boxes,
            **_named_files(step.options),
        )

    def _detector_settings(self, start: Optional[Start], times: int = 1) -> dict:
        detector = as_plain(self.plan.detector)
        detector['size'] = self.size  # chosen by the data and by what a GPU can do, where the plan names none
        del detector['longer']  # no result of another run depends on it
        detector['iterations'] *= times
        content = self._content(detector['config'] or 'mask-rcnn_small')
        options = dict(start.detector) if start else {}
        named = _named_files({**self.plan.detector.options, **options})
        return {**detector, 'content': content, 'start_options': options, **named}

    def probe(self, step: Step, start: Start) -> Stage:
        """The stage that measures the speed of a step."""
        return self.probes[self._speed_key(step, start)]

    def detector_probe(self, start: Start) -> Stage:
        """The stage that measures the speed of a start's detectors: their backbone is that of its first file."""
        return self.detector_probes[_first_file(start)]

    def _speed_key(self, step: Step, start: Start) -> str:
        """Steps of one key share a probe: those of one recipe, where the speed serves for estimates alone; where it
        decides on the length, options and the file that the chain begins with count, as they may change what an
        iteration takes."""
        if self.plan.pretraining.minutes is None:
            return step.recipe
        return json.dumps([step.recipe, step.options, step.boxes, start.steps[0].file], sort_keys=True, default=str)

    def _probe(self, step: Step, start: Start) -> Stage:
        settings = dict(kind='probe', **self._recipe_settings(step))
        file = None if self.plan.pretraining.minutes is None else start.steps[0].file
        if file:
            settings['file'] = _file_settings(file)
        name = f'speed_{slug(step.recipe)}'
        number = 1 + sum(probe.settings['recipe'] == step.recipe for probe in self.probes.values())

        def work(worker: Worker, folder: Path, _: dict) -> dict:
            cfg, _ = self._pretraining_config(step, {}, PROBE_STEPS, 0, init=file and Path(file).resolve())
            cfg.default_hooks.logger.interval = 1
            cfg.log_processor.window_size = 1
            _no_pictures(cfg)
            cfg.default_hooks.checkpoint.interval = 10**6
            usage, seconds = self._train(worker, folder, cfg)
            times = [record['time'] for record in scalars(folder / 'run') if 'loss' in record]
            iteration = statistics.median(times[len(times) // 3 :])
            return dict(
                iteration=iteration,
                startup=max(seconds - sum(times), 0.0),
                batch=cfg.train_dataloader.batch_size,
                **usage,
            )

        return Stage(name if number == 1 else f'{name}_{number}', settings, work)

    def _detector_probe(self, file: Optional[str], number: int) -> Stage:
        detector = self._detector_settings(None)
        del detector['iterations']  # another length is no other speed
        settings = dict(kind='probe', detector=detector, data=[self.data.identity['train'], self.data.identity['val']])
        if file:
            settings['file'] = _file_settings(file)

        def work(worker: Worker, folder: Path, _: dict) -> dict:
            content = json.loads(self.data.val.read_text())
            few = _first_images(content, PROBE_IMAGES)
            val = write_once(folder / 'val.json', few)
            options = {'default_hooks.logger.interval': 1}
            init = Path(file).resolve() if file else None
            cfg = self._detector_config(self.data.train, val, init, 0, PROBE_STEPS, options)
            cfg.log_processor.window_size = 1
            usage, seconds = self._train(worker, folder, cfg)
            records = scalars(folder / 'run')
            times = [record['time'] for record in records if 'loss' in record]
            evaluation = next(record['time'] for record in reversed(records) if 'loss' not in record)  # AP or none
            image = evaluation / cfg.val_dataloader.batch_size
            evaluated = image * len(few['images'])
            return dict(
                iteration=statistics.median(times[len(times) // 3 :]),
                image=image,
                startup=max(seconds - sum(times) - evaluated, 0.0),
                **usage,
            )

        return Stage('speed_detector' if number == 1 else f'speed_detector_{number}', settings, work)

    def _pretraining(
        self, start: Start, seed: int, knobs: Optional[dict] = None, name: Optional[str] = None, share: float = 1.0
    ) -> Stage:
        """All steps of a start; a trial of the tuning has knobs of its own and a share of the length."""
        trial = knobs is not None
        budget = self.plan.pretraining
        settings = dict(
            kind='trial' if trial else 'pretraining',
            start=start.name,
            steps=[
                self._recipe_settings(step, knobs) if step.recipe else _file_settings(step.file) for step in start.steps
            ],
            shares=[step.share for step in start.steps],
            iterations=budget.iterations,
            minutes=budget.minutes,
            share=share,
            checkpoints=[] if trial else sorted(budget.lengths),
            seed=seed,
        )
        needs = [self.probe(step, start) for step in start.recipes] if budget.minutes is not None else []
        if not trial and start.name in self.tuned:
            needs.append(self.tuned[start.name])

        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            chosen = dict(knobs or {})
            if not trial and start.name in self.tuned:
                chosen = results[self.tuned[start.name].name]['pretraining']
            export = Path(start.steps[0].file).resolve() if start.steps[0].file else None
            usage, seconds, iterations = {}, 0.0, []
            for i, step in enumerate(start.steps):
                if not step.recipe:
                    continue
                speed = results[self.probe(step, start).name] if budget.minutes is not None else None
                length = max(4, round(self._iterations(step, start, speed) * share))
                last = i == len(start.steps) - 1  # whose knobs were searched
                cfg, images = self._pretraining_config(step, chosen if last else {}, length, seed, init=export)
                per_epoch = max(1, images // cfg.train_dataloader.batch_size)
                cfg.default_hooks.checkpoint.update(
                    interval=max(1, math.ceil(length / per_epoch) // CHECKPOINTS),
                    max_keep_ckpts=-1 if last and settings['checkpoints'] else 2,
                )
                place = folder if len(start.steps) == 1 else folder / f'step{i}'
                used, took = self._train(worker, place, cfg)
                usage = {key: max(value, usage.get(key, 0)) for key, value in used.items()}
                seconds += training_seconds(place / 'run') or took
                found = exports(place / 'run')
                export = found[-1]
                iterations.append(length)
                if last:
                    at = {path: min(_iterations_of(path, per_epoch), length) for path in found}
                    marks = {at[path] / length: path for path in found}
                    wanted = {
                        share: marks[min(marks, key=lambda m: abs(m - share))] for share in settings['checkpoints']
                    }
            for note in folder.rglob('last_checkpoint'):  # first: killed below, nothing would be found where it points
                note.unlink()
            for checkpoint in folder.rglob('epoch_*.pth'):
                if not checkpoint.name.endswith('_backbone.pth'):
                    checkpoint.unlink()  # it is for resuming, and this is done
            final = [record for record in scalars(place / 'run') if 'loss' in record]
            return dict(
                export=str(export.relative_to(folder)),
                checkpoints={f'{share:g}': str(path.relative_to(folder)) for share, path in wanted.items()},
                reached={f'{share:g}': at[path] for share, path in wanted.items()},
                iterations=iterations,
                knobs=chosen,
                seconds=seconds,
                last={k: round(v, 5) for k, v in (final[-1] if final else {}).items() if isinstance(v, (int, float))},
                **usage,
            )

        return Stage(name or f'pretraining_{slug(start.name)}_p{seed}', settings, work, tuple(needs))

    def _detector(
        self,
        run: DetectorRun,
        on: Optional[str] = None,
        source: Optional[Stage] = None,
        knobs: Optional[dict] = None,
        name: Optional[str] = None,
    ) -> Stage:
        """A detector on a subset of the labels, evaluated on the evaluated split (``on`` in its place).

        A trial of the tuning has knobs and a pretraining (``source``) of its own.
        """
        start = self.plan.start(run.start)
        on = on or self.evaluated
        trial = knobs is not None
        if source is None and start.recipes:
            source = self.pretrainings[run.start, run.pretraining_seed]
        needs = [source] if source else []
        if not trial and run.start in self.tuned:
            needs.append(self.tuned[run.start])
        settings = dict(
            kind='detector',
            detector=self._detector_settings(start, run.times),
            file=_file_settings(start.steps[0].file) if start.steps and not start.recipes else None,
            labels=self.data.subsets[run.percent, run.seed].name,
            evaluated=self.data.identity[on],
            on=on,
            seed=run.seed,
            share=run.share,
            knobs=knobs,
        )

        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            chosen = dict(knobs or {})
            if not trial and run.start in self.tuned:
                chosen = results[self.tuned[run.start].name]['detector']
            init = Path(start.steps[0].file).resolve() if start.steps and not start.recipes else None
            if source is not None:
                found = results[source.name]
                file = found['export'] if run.share == 1 else found['checkpoints'][f'{run.share:g}']
                init = self.stages.path(source) / file
            evaluated = self.data.test if on == 'test' else self.data.val
            cfg = self._detector_config(
                self.data.subsets[run.percent, run.seed],
                evaluated,
                init,
                run.seed if not trial else TUNING_SEED + run.seed,
                self.plan.detector.iterations * run.times,
                {**start.detector, **chosen},
            )
            for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
                evaluator.outfile_prefix = str((folder / 'predictions').resolve())
            remove_attempt(folder / 'run')  # its random numbers are those of an unbroken run, so it begins anew
            usage, seconds = self._train(worker, folder, cfg)
            for checkpoint in (folder / 'run').glob('*.pth'):
                checkpoint.unlink()
            return dict(**ap_of(folder), seconds=seconds, **usage)

        name = name or '_'.join(
            [f'detector_{slug(run.start)}', *([f'p{run.pretraining_seed}'] if start.recipes else [])]
            + [f'{run.percent:g}pct'.replace('.', 'p'), f'd{run.seed}']
            + ([f'at{100 * run.share:g}'.replace('.', 'p')] if run.share != 1 else [])
            + ([f'x{run.times}'] if run.times != 1 else [])
        )
        self._detector_files[name] = _first_file(start)
        return Stage(name, settings, work, tuple(needs))

    def _tuned(self, start: Start) -> Stage:
        """The best of the trials of a start; the first trial is the config as it is."""
        plan = self.plan
        percent = plan.tuning.labels or min(plan.labels)
        if (percent, 0) not in self.data.subsets:
            raise ConfigError(f'tuning.labels {percent:g} is not among the labels {list(plan.labels)}.')
        with _configs:
            knobs = tunable([load_config(step.recipe) for step in start.recipes[-1:]])
            detector_knobs = tunable([load_config(plan.detector.config or 'mask-rcnn_small')])
        if start.recipes and not knobs:
            raise ConfigError(
                f'{start.recipes[-1].recipe} lists no knobs under "tunable": there is nothing to search for.'
            )
        trials, drawn = [], draw_trials((knobs, detector_knobs), plan.tuning.trials, start.name.encode())
        for k, chosen in enumerate(drawn):
            source = None
            if start.recipes:
                name = f'trial{k}_{slug(start.name)}_pretraining'
                source = self._pretraining(start, TUNING_SEED, chosen[0], name, plan.tuning.share)
            run = DetectorRun(start.name, 0, percent, 0)
            trials.append(
                self._detector(run, 'val', source, knobs=chosen[1], name=f'trial{k}_{slug(start.name)}_detector')
            )

        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            scores = [results[trial.name]['box AP'] for trial in trials]
            best = best_trial(scores)
            tried = [dict(pretraining=a, detector=b, ap=ap) for (a, b), ap in zip(drawn, scores)]
            return dict(pretraining=drawn[best][0], detector=drawn[best][1], trial=best, trials=tried)

        return Stage(f'tuned_{slug(start.name)}', dict(kind='tuned', drawn=as_plain(drawn)), work, tuple(trials))

    def _measured(self, start: Start) -> List[Tuple[int, float]]:
        """Pretraining seeds and shares whose frozen features are measured; random weights are measured beside each."""
        if not start.recipes:
            return [(0, 1.0)] if start.steps else []
        shares = sorted({1.0, *self.plan.pretraining.lengths})
        return [(seed, share) for seed in range(self.plan.seeds.pretraining) for share in shares]

    def _measure(self, start: Start, seed: int, share: float = 1.0) -> Stage:
        source = self.pretrainings.get((start.name, seed))
        evaluated = self.data.test if self.evaluated == 'test' else self.data.val
        size = self.size or 128
        settings = dict(
            kind='measure',
            file=None if source else _file_settings(start.steps[0].file),
            share=share,
            size=size,
            data=[self.data.identity['train'], self.data.identity[self.evaluated]],
        )

        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            if source is None:
                export = Path(start.steps[0].file).resolve()
            else:
                found = results[source.name]
                name = found['export'] if share == 1 else found['checkpoints'][f'{share:g}']
                export = self.stages.path(source) / name
            resnet = find_resnet(read_checkpoint(export)) is not None
            patch = 1 if resnet else int(backbone_settings(export)['patch_size'])
            out = folder / 'measures.json'
            worker.command(
                ['regions', export, '--data', '/', '--ann-files', self.data.train, evaluated, '--images', '/', '/']
                + ['--size', math.ceil(size / patch) * patch, '--max-images', 400, 200, '--workers', 0, '--out', out],
                folder,
            )
            found = json.loads(out.read_text())
            return dict(metrics=found['metrics'], random=found['random'])

        suffix = '' if share == 1 else f'_at{100 * share:g}'.replace('.', 'p')
        name = f'measure_{slug(start.name)}' + (f'_p{seed}' if source else '') + suffix
        return Stage(name, settings, work, (source,) if source else ())

    def _pretraining_config(
        self, step: Step, knobs: dict, iterations: int, seed: int, init: Optional[Path] = None
    ) -> Tuple[Config, int]:
        """The config of a pretraining, and the number of its images."""
        options = {**step.options, **knobs}
        with _configs:
            cfg, found = pretraining_config(
                self.data.pretraining[step.boxes],
                recipe=step.recipe,
                init=init,
                steps=iterations,
                seed=seed,
                options=options,
            )
        loader = cfg.train_dataloader
        if 'train_dataloader.num_workers' not in options:  # cores are shared with the stages beside it
            loader.num_workers = min(loader.num_workers, self.stages.threads)
        return cfg, found.images

    @functools.cached_property
    def size(self) -> Optional[int]:
        """Short side of the images of a small detector: one for any share of the labels; None: the config's."""
        detector = self.plan.detector
        if detector.size or detector_name(detector.config or SMALL_DETECTORS[0]) not in SMALL_DETECTORS:
            return detector.size
        return fitting_size(read_content(Split(self.data.train, Path('/'))))

    def _detector_config(
        self, train: Path, evaluated: Path, init: Optional[Path], seed: int, iterations: int, options: dict
    ):
        detector = self.plan.detector
        with _configs:
            cfg = detector_config(
                Split(train, Path('/')),
                Split(evaluated, Path('/')),
                detector=detector.config,
                init=init,
                size=self.size,
                iterations=iterations,
                batch=detector.batch,
                seed=seed,
                options={**detector.options, **options},
            )
        if self.stages.gpus == 0 or self.detectors_on_cpu:
            for key in ('train', 'val', 'test'):
                cfg[f'{key}_dataloader'].num_workers = 0
                cfg[f'{key}_dataloader'].persistent_workers = False
        return cfg

    def _train(self, worker: Worker, folder: Path, cfg) -> Tuple[dict, float]:
        """``odis-mm train`` by a config that is written beside its work dir; peak memory, and seconds."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / 'config.py'
        with _configs:
            Config(cfg.to_dict(), format_python_code=False).dump(path)  # formatting takes longer than all else here
        used = worker.command(
            ['train', path, '--work-dir', folder / 'run', '--resume', 'auto'],
            folder,
            cpu=self.detectors_on_cpu and cfg.get('default_scope') == 'mmdet',
        )
        memory = [record['memory'] for record in scalars(folder / 'run') if 'memory' in record]
        return dict(memory_mb=round(max(memory) if memory else used['memory_mb'])), used['seconds']


def resolve_files(plan: Plan, folder: Path) -> Plan:
    """The plan with absolute paths of its files and, where they are files, recipes."""

    def absolute(step: Step) -> Step:
        if step.file:
            return dataclasses.replace(step, file=str(resolve(step.file, folder)))
        own = folder / step.recipe
        return dataclasses.replace(step, recipe=str(own.resolve())) if own.is_file() else step

    starts = tuple(dataclasses.replace(start, steps=tuple(map(absolute, start.steps))) for start in plan.starts)
    detector = plan.detector
    if detector.config and (folder / detector.config).is_file():
        detector = dataclasses.replace(detector, config=str((folder / detector.config).resolve()))
    return dataclasses.replace(plan, starts=starts, detector=detector)


def training_seconds(folder: Path) -> float:
    """Time of all iterations of a training, over its interruptions."""
    total, before = 0.0, 0
    for record in scalars(folder):
        if 'loss' in record and 'time' in record:
            step = int(record.get('step', record.get('iter', before + 1)))
            total += record['time'] * max(step - before, 0)
            before = max(before, step)
    return total


def coco_ap(folder: Path) -> Dict[str, float]:
    """COCO AP in percent from the last evaluation of the training in ``folder``.

    Raises:
        StageError: nothing was evaluated there.
    """
    evaluated = [record for record in scalars(folder) if AP_KEYS['box AP'] in record]
    if not evaluated:
        raise StageError(f'no COCO AP among the scalars in {folder}: the detector was not evaluated.')
    return {name: round(100 * evaluated[-1][key], 2) for name, key in AP_KEYS.items() if key in evaluated[-1]}


def ap_of(folder: Path) -> Dict[str, float]:
    """Of a detector stage; a detector that finds nothing at all has an AP of 0, which mmdet does not log."""
    predictions = folder / 'predictions.bbox.json'
    if predictions.is_file() and not json.loads(predictions.read_text()):
        masks = {'mask AP': 0.0} if (folder / 'predictions.segm.json').is_file() else {}
        return {'box AP': 0.0, 'box AP50': 0.0, **masks}
    return coco_ap(folder / 'run')


def _file_settings(file: Optional[str]) -> dict:
    path = Path(file)
    return dict(file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def _first_file(start: Start) -> Optional[str]:
    return start.steps[0].file if start.steps else None


def _named_files(options: Dict[str, Any]) -> dict:
    """What is in the files that options name, such as boxes: written anew, they make other stages."""
    found = {key: _file_settings(v) for key, v in options.items() if isinstance(v, str) and os.path.isfile(v)}
    return dict(files=found) if found else {}


def _own_data(step: Step) -> List[str]:
    """Paths that the options of a step put in the place of the comparison's data."""
    keys = [f'train_dataloader.dataset.{name}' for name in ('ann_file', 'data_prefix')]
    return [str(step.options[key]) for key in keys if key in step.options]


def _first_images(content: dict, count: int) -> dict:
    images = content['images'][:count]
    ids = {image['id'] for image in images}
    return {**content, 'images': images, 'annotations': [a for a in content['annotations'] if a['image_id'] in ids]}


def _iterations_of(export: Path, per_epoch: int) -> int:
    """After how many iterations it was written; by its name where it does not tell."""
    return read_meta(export).get('iteration') or int(re.findall(r'\d+', export.stem)[0]) * per_epoch


def _no_pictures(cfg) -> None:
    for hook in [*cfg.get('custom_hooks', []), *cfg.get('default_hooks', {}).values()]:
        if isinstance(hook, dict) and hook.get('type') == 'ViewInspectionHook':
            hook['pictures'] = 0
