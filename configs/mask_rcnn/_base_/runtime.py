# mmdet's runtime with this project's checkpoints, progress, log and check of the weights.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['odis_mm'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='mmpretrain.SafeCheckpointHook', max_keep_ckpts=2),
    runtime_info=dict(type='mmpretrain.DeferredInfoHook'),
    progress=dict(type='mmpretrain.ProgressHook'),
    init=dict(type='DetectorInit'),  # the backbone equals its file before the first iteration
    bad_images=dict(type='mmpretrain.BadImageHook'),  # names the images that were replaced
    preemption=dict(type='mmpretrain.PreemptionHook'),  # SIGTERM, SIGUSR1, Ctrl-C: a checkpoint, then exit
)
env_cfg = dict(dist_cfg=dict(timeout=1800))  # seconds; the backend is gloo where there is no GPU
log_processor = dict(type='mmpretrain.RunLogProcessor')
visualizer = dict(type='BoxVisualizer')  # labels of a readable size, for --show-dir
