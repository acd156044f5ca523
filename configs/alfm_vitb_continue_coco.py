# ALFM (our reconstruction) on COCO train2017, continued from weights of a ViT-B/16 (iBOT, DINO, MAE, DINOv3, an export
# of ours): --init FILE. 20 epochs at a global batch of 512 (16 ranks x 32). All numbers are ours, made to keep what the
# weights know.
_base_ = [
    './_base_/models/alfm_vitb.py',
    './_base_/datasets/coco_two_views.py',
    './_base_/schedules/continue.py',
    './_base_/default_runtime.py',
]

# DINOv2 has patches of 14: --cfg-options model.backbone.patch_size=14. Only the last n blocks learn with
# model.backbone.frozen=12-n.

# a slow teacher: what it forgets is gone
model = dict(head=dict(teacher_temp=dict(warmup_epochs=6)), momentum=dict(start=0.9995))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(clip_grad=dict(max_norm=0.3))  # iBOT's practice for ViT-B
default_hooks = dict(
    # a tenth of the run for neck and head on the frozen backbone, another tenth for the backbone's rate to rise; weight
    # decay stays
    schedule=dict(warm_heads=0.1, weight_decay_end=0.04),
    # the proxy for detection at iteration 0 and after every second epoch, a warning when it falls below the start, the
    # best export kept
    regions=dict(
        type='RegionProxyHook', data_root='{{$COCO_ROOT:data/coco/}}', interval=2, random_baseline=False, keep_best=True
    ),
)
