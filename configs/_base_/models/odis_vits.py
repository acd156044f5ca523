# ViT-S/16 (the papers' ViT-S is mmpretrain's 'deit-small'; its 'small' is another network).
model = dict(
    type='ODIS',
    data_preprocessor=dict(  # ImageNet, RGB
        type='ViewPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
    ),
    backbone=dict(
        type='ObjectViT',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,  # student only (iBOT recipe)
        with_cp=False,
    ),  # True: activation checkpointing, less memory for a quarter more time
    neck=dict(
        type='ProjectionNeck',  # iBOT recipe
        in_channels=384,
        hidden_channels=2048,
        bottleneck_channels=256,
        num_prototypes=8192,
        norm_trainable=True,
    ),  # iBOT recipe for ViT-S
    head=dict(
        type='DistillationHead',
        num_prototypes=8192,
        student_temp=0.1,  # iBOT recipe
        teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=30),  # iBOT recipe
        center_momentum=0.9,  # iBOT recipe
        patch_center='masked',
    ),  # DINOv2's practice; 'all' is iBOT's definition and costs a projection of all patches
    momentum=dict(start=0.996, end=1.0),  # iBOT recipe: share of the teacher that stays
    masked_attention=True,  # paper: [OBJ] sees its object only
    lambda_patch=1.0,  # paper
    lambda_img=0.0,
)  # paper; above 0 it needs backbone.cls_beside_object=True
