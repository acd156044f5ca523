# Continued pretraining from weights that are worth keeping (tools/train.py CONFIG --init FILE): short, slow, heads
# first. All numbers are ours.
_base_ = './selfsup_100e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-5),  # per 256 images; a tenth of the rate of a run from nothing
    # each block learns at 0.75 of the rate of the next one: what is general lies at the bottom
    paramwise_cfg=dict(layer_decay_rate=0.75),
)
param_scheduler = [  # the backbone's own rise follows that of the heads, see warm_heads of SelfSupScheduleHook
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-7, by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20)
