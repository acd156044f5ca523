# How a run is carried out, the same for all recipes.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['odis_mm'], allow_failed_imports=False)

# Change a hook by its name: default_hooks=dict(health=dict(interval=10)); None removes it.
default_hooks = dict(
    runtime_info=dict(type='DeferredInfoHook'),  # reads scalars from the device only when something is logged
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    progress=dict(type='ProgressHook'),
    nonfinite=dict(type='NonFiniteLossHook'),
    schedule=dict(type='SelfSupScheduleHook', weight_decay_end=0.4, freeze_prototypes_epochs=1),  # iBOT recipe
    export=dict(type='ExportTeacherHook'),
    health=dict(
        type='HealthHook', interval=50
    ),  # figures of the run, and a warning with a remedy when they show a known fault
    bad_images=dict(
        type='BadImageHook', interval=50
    ),  # names the images that were replaced: see max_bad_share of the data set
    # SIGTERM, SIGUSR1, Ctrl-C: a checkpoint, then exit; --resume continues mid-epoch
    preemption=dict(type='PreemptionHook'),
    # share of images that show their object, and pictures of views, curves and attention
    views=dict(type='ViewInspectionHook'),
)
custom_hooks = []

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),
)  # gloo where there is no GPU; timeout in seconds

# Files in the work dir are always written. For TensorBoard or Weights & Biases:
#   --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend     (or WandbVisBackend)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='RunLogProcessor', window_size=10)
log_level = 'INFO'

randomness = dict(seed=0, deterministic=False)  # the views have a seed of their own: train_dataloader.dataset.seed
load_from = None
resume = False
