# mmdet's 12 epochs with steps after 8 and 11; optimizer, warm-up and batch of the detector of the GTSA paper (arXiv
# 2304.08014).
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    constructor='DetectorLayerDecay',  # no decay on pos_embed, cls_token (paper), norms and biases
    paramwise_cfg=dict(layer_decay_rate=1.0),  # 1: every block at the same rate
    optimizer=dict(
        _delete_=True, type='AdamW', lr=5e-5, betas=(0.9, 0.999), weight_decay=0.05
    ),  # paper; betas: torch's
)

param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000  # paper

# lr above is for 8 images per step over all GPUs (paper); it follows the real number linearly
auto_scale_lr = dict(enable=True, base_batch_size=8)
