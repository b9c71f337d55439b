"""Recorded outputs of the authors' network for seed 7; `star_jax.verify` compares ours with them.

`eval_seed7.npz` holds tensors of inference; `train_seed7.npz` holds tensors, losses, running
statistics and gradient norms of one training pass. `reference_arrays.py` generates the parameters
and inputs of both from the seed, for the names and shapes in `state_dict.json`.
"""
