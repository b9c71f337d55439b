"""What the authors' network computes, seed 7: `star_jax.verify` holds ours against it.

`eval_seed7.npz` holds tensors of inference, `train_seed7.npz` those, the losses, the running
statistics and the gradient norms of one training pass. `reference_arrays.py` makes the parameters
and inputs of both from the seed, for the names and shapes of `state_dict.json`.
"""
