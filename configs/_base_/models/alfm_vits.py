# ALFM on ViT-S/16: our reconstruction from the paper's abstract. The structure of the two losses is documented in
# odis_mm.models.ALFM; every number here is ours, unless it says where it comes from ("iBOT": arXiv 2111.07832).
model = dict(
    type='ALFM',
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
        type='GlobalLocalNeck',
        in_channels=384,
        hidden_channels=2048,  # iBOT's head
        bottleneck_channels=256,  # iBOT's head; of each of the two projectors
        num_prototypes=4096,
        norm_trainable=True,
    ),
    head=dict(
        type='ALFMHead',
        num_prototypes=4096,
        num_cells=7,  # what two views share becomes 7 x 7 cells
        context_temp=0.1,  # of the attention among a teacher's cells
        student_temp=0.1,  # iBOT
        teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=30),  # iBOT, but for the steps: see odis_vits.py
        center_momentum=0.9,  # iBOT
        lambda_entropy=1.0,  # against the similarity of the two views
        eps2=0.05,  # squared distortion of the coding length
    ),
    momentum=dict(start=0.996, end=1.0),  # iBOT; the share of the teacher that stays
    lambda_gmsr=1.0,  # 0 leaves the term out
    lambda_cdlp=1.0,  # 0 leaves the term out
)
