# ODIS on ViT-S/16 (the papers' ViT-S is mmpretrain's 'deit-small'; its 'small' is another network).
# Where a number comes from: "paper", ODIS (arXiv 2506.05409); "iBOT", that paper's recipe for ViT-S (arXiv 2111.07832),
# which ODIS builds on; "release", read off code and not off a paper; "ours", this project's choice, or not checked.
model = dict(
    type='ODIS',
    data_preprocessor=dict(  # ImageNet's, RGB, as everywhere
        type='ViewPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
    ),
    backbone=dict(
        type='ObjectViT',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,  # iBOT; of the student alone
        with_cp=False,  # True: activation checkpointing, less memory for a quarter more time
    ),
    neck=dict(
        type='ProjectionNeck',  # iBOT: one for tokens and patches
        in_channels=384,
        hidden_channels=2048,  # iBOT
        bottleneck_channels=256,  # iBOT
        num_prototypes=8192,  # iBOT
        norm_trainable=True,  # iBOT, ViT-S
    ),
    head=dict(
        type='DistillationHead',
        num_prototypes=8192,
        student_temp=0.1,  # iBOT
        # iBOT's numbers; ours moves at each iteration and arrives after 30 epochs. The release steps once per epoch,
        # over 29 intervals, and has 0.07 from the 30th epoch on; the two are never more than 0.001 apart
        teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=30),
        center_momentum=0.9,  # iBOT
        patch_center='masked',  # DINOv2's practice; 'all' is iBOT's definition and costs a projection of all patches
    ),
    momentum=dict(start=0.996, end=1.0),  # iBOT; the share of the teacher that stays
    masked_attention=True,  # paper: [OBJ] sees its object only
    lambda_patch=1.0,  # paper
    lambda_img=0.0,  # paper; above 0 it needs backbone.cls_beside_object=True
)
