# ViT-S/16 (mmpretrain's 'deit-small') with GTSA's projector, predictor and rotation classifier.
model = dict(
    type='GTSA',
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
    neck=dict(  # paper: the projector
        type='ConvNeck', in_channels=384, hidden_channels=384, out_channels=768, num_blocks=2, residual=True
    ),
    head=dict(
        type='GTSAHead',
        in_channels=384,
        predictor=dict(  # paper
            type='ConvNeck', in_channels=768, hidden_channels=768, out_channels=768, num_blocks=1, residual=False
        ),
        crop_cells=(10, 4),  # paper: for global and local views
        num_matches=(98, 18),  # paper: for global and local views, half of their 196 and 36 cells
        rotation_channels=(768, 768, 128),  # paper
        lambda_crop=1.0,  # paper; a weight of 0 leaves its loss out
        lambda_correspondence=0.5,  # paper
        lambda_rotation=0.5,  # paper
        correspondence_epoch=10,
    ),  # paper: after the warm-up; follow the schedule if you shorten that
    momentum=dict(start=0.996, end=1.0),
)  # share of the teacher that stays
