custom_imports = dict(imports=['odis_mm'], allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmpretrain.SafeCheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    runtime_info=dict(type='mmpretrain.DeferredInfoHook'),
    progress=dict(type='mmpretrain.ProgressHook'),
    init=dict(type='DetectorInit'),  # the backbone equals its file before the first iteration
    preemption=dict(type='mmpretrain.PreemptionHook'),  # SIGTERM, SIGUSR1, Ctrl-C: a checkpoint, then exit
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),
)  # gloo where there is no GPU; timeout in seconds
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='mmpretrain.RunLogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
