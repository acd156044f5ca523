# 12 epochs, as in the detector of the GTSA paper (arXiv 2304.08014)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='DetectorLayerDecay',  # no decay on pos_embed, cls_token, norms and biases
    paramwise_cfg=dict(layer_decay_rate=1.0),  # 1: every block at the same rate
    optimizer=dict(type='AdamW', lr=5e-5, betas=(0.9, 0.999), weight_decay=0.05),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

# lr above is for 8 images a step over all GPUs; it follows the real number linearly
auto_scale_lr = dict(enable=True, base_batch_size=8)
