# For 200 to 5,000 images: an epoch may be three steps, so lengths are steps. `odis-mm pretrain` sets them from the
# data.
optim_wrapper = dict(
    type='SafeOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04, betas=(0.9, 0.999), fused=True),  # ours, by recipe's batch
    constructor='SelfSupOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),  # iBOT's number for each parameter by itself; of all together: ours
    accumulative_counts=1,
)
auto_scale_lr = dict(enable=True, base_batch_size=64)
max_iters = 600
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=60, end=max_iters),
]
train_cfg = dict(type='ResumableEpochLoop', max_iters=max_iters)
