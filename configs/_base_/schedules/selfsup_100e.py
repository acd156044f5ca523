# AdamW, linear warm-up, cosine; both per iteration. Set train_cfg.max_epochs alone to change the length: the cosine
# ends with it.
optim_wrapper = dict(
    type='SafeOptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=5e-4,
        weight_decay=0.04,
        betas=(0.9, 0.999),  # per 256 images (iBOT recipe, ViT-S)
        fused=True,
    ),  # one kernel for all parameters; False: torch's plain loop, the same numbers
    constructor='SelfSupOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),  # iBOT recipe, ViT-S
    accumulative_counts=1,
)
auto_scale_lr = dict(enable=True, base_batch_size=256)  # lr x (ranks x batch x accumulation)/256

param_scheduler = [  # iBOT recipe: 10 epochs, 1e-6
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=100)
