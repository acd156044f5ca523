# ViT-L/16 with the recipe of ViT-S; drop path 0.2 and the taps (the same fractions of the depth) are this project's
# choice. For data with boxes alone: the twin of mask-rcnn_vitl_fpn_1x_coco.py.
_base_ = ['_base_/faster-rcnn_vit_fpn.py', '_base_/coco_detection.py', '_base_/schedule_1x.py', '_base_/runtime.py']

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, out_indices=[7, 11, 15, 23]),  # after blocks 8, 12, 16 and 24
    neck=[
        dict(type='ViTFeaturePyramid', in_channels=1024, norm_cfg=dict(type='BN')),
        dict(type='FPN', in_channels=[1024] * 4, out_channels=256, num_outs=5),
    ],
)
