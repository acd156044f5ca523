# AdamW, linear warm-up, cosine; both per iteration. Set train_cfg.max_epochs alone to change the length: the cosine
# ends with it. "iBOT": its recipe for ViT-S (arXiv 2111.07832); "release": read off its code, GTSA's has the same;
# "ours".
optim_wrapper = dict(
    type='SafeOptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=5e-4,  # iBOT; per 256 images
        weight_decay=0.04,  # iBOT; it rises to the end that SelfSupScheduleHook names
        betas=(0.9, 0.999),  # release (torch's)
        fused=True,  # one kernel for all parameters; False: torch's plain loop, the same numbers
    ),
    constructor='SelfSupOptimWrapperConstructor',  # no decay of tokens and positions: ours, the releases decay them
    # iBOT's number. Release: of each parameter by itself; of ViT-S and GTSA none exceeds 3 at first, while the norm of
    # all together is above 4 and a clip of that would scale every gradient down
    clip_grad=dict(max_norm=3.0, per_tensor=True),
    accumulative_counts=1,
)
auto_scale_lr = dict(enable=True, base_batch_size=256)  # iBOT: lr x (ranks x batch x accumulation)/256

param_scheduler = [  # iBOT: 10 epochs of warm-up, to 1e-6
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=100)  # GTSA's paper; of the other recipes on COCO: ours
