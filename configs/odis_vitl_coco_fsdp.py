# ODIS, ViT-L/16, COCO, every rank with its part of weights, gradients, optimizer state and teacher (FSDP): the recipe
# of odis_vitl_coco.py, on as many GPUs, in bf16. Of ViT-L's 6.6 GB for these in float32, 8 ranks keep 0.8 GB each.
#   bash tools/dist_train.sh odis_vitl_coco_fsdp RANKS
_base_ = './odis_vitl_coco.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='FullyShardedStrategy')
optim_wrapper = dict(type='AutocastOptimWrapper')
