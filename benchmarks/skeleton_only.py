"""Measures what skeletons alone reveal of identity: trains STAR's skeleton branch without frames.

  python -m benchmarks.skeleton_only --config=configs/star_synthetic_demo.py

The branch (edge LSTM, keypoint graph, batch norm, classifier) learns by cross entropy and
batch-hard triplets, with the config's batches, steps and optimizer, and its descriptor s is the
embedding. Prints the report of the config's protocol, and the mAP of random embeddings.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from data_pipelines.io.progress import Progress
from data_pipelines.loader import embed_batches, train_batches
from data_pipelines.records.dataset import open_dataset
from data_pipelines.sampling import BatchSpec, steps_per_epoch
from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.augment import random_crop_and_flip
from star_jax.config import as_config
from star_jax.evaluation.protocols import evaluate
from star_jax.evaluation.scores import format_table
from star_jax.losses import batch_hard_triplet, cross_entropy
from star_jax.models import build_model
from star_jax.models.star import l2_normalize
from star_jax.network import clip_spec
from star_jax.optim import make_optimizer
from star_jax.state import initial_variables
from star_jax.streams import stream
from star_jax.training.preparation import with_identities

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    del argv
    config = as_config(CONFIG.value)
    dataset = open_dataset(config.data.dir)
    train, test = dataset.split("train"), dataset.split("test")
    config = with_identities(config, train.index.labels)
    model = build_model(config.model)
    data = config.data
    batch = BatchSpec(config.seed, data.identities_per_batch, data.tracklets_per_identity)
    epoch = steps_per_epoch(train.index, batch.identities, batch.tracklets)
    num_steps = config.optim.epochs * epoch
    optimizer = make_optimizer(config.optim, epoch)
    variables = initial_variables(config, model)
    params, batch_stats = variables["params"], variables["batch_stats"]

    def skeleton_of(variables: Any, keypoints: jax.Array, **options: Any) -> Any:
        # Nothing below uses the backbone's features, so XLA leaves the backbone out.
        frames = jnp.zeros((*keypoints.shape[:2], *config.data.frame_size, 3))
        return model.apply(variables, frames, keypoints, modality="visible", **options)

    @jax.jit
    def train_step(
        params: Any, batch_stats: Any, opt_state: Any, step: jax.Array, batch: Any
    ) -> tuple[Any, Any, Any, jax.Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        keypoints = jnp.concatenate([batch["keypoints"][:, :, i] for i in (VISIBLE, INFRARED)])
        blank = jnp.zeros((*keypoints.shape[:2], *config.data.frame_size, 3), jnp.uint8)
        _, keypoints = random_crop_and_flip(
            stream(key, "crop"), blank, keypoints, padding=config.augment.padding
        )
        labels = jnp.tile(batch["labels"], 2)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            output, updates = skeleton_of(
                {"params": params, "batch_stats": batch_stats},
                keypoints,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": stream(key, "dropout")},
            )
            total = cross_entropy(logits=output.skeleton_logits, labels=labels)
            total += batch_hard_triplet(embeddings=output.skeleton, labels=labels)
            return total, updates["batch_stats"]

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), statistics, opt_state, value

    opt_state = optimizer.init(params)
    batches = train_batches(train, clip_spec(config), batch, range(num_steps))
    with Progress(num_steps, "training") as progress:
        for step, clips in enumerate(batches):
            params, batch_stats, opt_state, value = train_step(
                params, batch_stats, opt_state, step, clips
            )
            progress.update(step + 1, {"loss": float(value)})

    @jax.jit
    def embed(keypoints: jax.Array) -> jax.Array:
        output = skeleton_of({"params": params, "batch_stats": batch_stats}, keypoints)
        return l2_normalize(output.skeleton)

    num_tracklets = len(test)
    embeddings = np.concatenate(
        [
            np.asarray(embed(batch["keypoints"]))
            for batch in embed_batches(test, clip_spec(config), range(num_tracklets), 64)
        ]
    )[:num_tracklets]
    print(format_table(evaluate(config.eval.protocol, embeddings, test.index)))

    rng = np.random.default_rng(config.seed)
    chance = []
    for _ in range(10):
        noise = rng.standard_normal((num_tracklets, 64)).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        report = evaluate(config.eval.protocol, noise, test.index)
        chance.append([report[direction]["map"] for direction in ("i2v", "v2i")])
    print("mAP of random embeddings, i2v and v2i:", np.mean(chance, axis=0).round(2))


if __name__ == "__main__":
    app.run(main)
