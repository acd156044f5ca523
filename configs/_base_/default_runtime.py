# How a run is carried out, the same for all recipes.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['odis_mm'], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(
        type='DeferredInfoHook'
    ),  # RuntimeInfoHook that waits for the device only when something is logged
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='ProgressHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='SelfSupScheduleHook', weight_decay_end=0.4, freeze_prototypes_epochs=1),  # iBOT recipe
    dict(type='ExportTeacherHook'),
    dict(type='HealthHook', interval=50),  # figures and, when they show a known sickness, a verdict and a cure
    dict(type='BadImageHook', interval=50),  # names the images that were replaced: see max_bad_share of the data set
    dict(type='PreemptionHook'),
    dict(
        type='ViewInspectionHook'
    ),  # share of images that show their object, and pictures of views, curves and attention
]  # SIGTERM, SIGUSR1: a checkpoint, then exit code 75; --resume goes on in the middle of the epoch

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),
)  # gloo where there is no GPU; timeout in seconds

# Files in the work dir are always written. For TensorBoard or Weights & Biases:
#   --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend     (or WandbVisBackend)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=10)
log_level = 'INFO'

randomness = dict(seed=0, deterministic=False)  # the views have a seed of their own: train_dataloader.dataset.seed
load_from = None
resume = False
