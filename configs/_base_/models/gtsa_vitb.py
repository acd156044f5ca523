# ViT-B/16. The paper has ViT-S only: widths that follow the backbone's are ours.
_base_ = './gtsa_vits.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768, hidden_channels=768), head=dict(in_channels=768))
