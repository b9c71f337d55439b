r"""Embeds a packed dataset with a trained STAR, for launch/search.py.

  python launch/embed.py --workdir=runs/star --source=data/folder/1.1.0 --output=mine
  python launch/embed.py --checkpoint=runs/star/checkpoints/34840 --source=data/folder/1.1.0 \
    --clips=dense --output=mine
  python launch/embed.py --checkpoint=star.safetensors --source=data/folder/1.1.0 --output=mine

Writes <output>.npz, embeddings and metadata of each tracklet, and <output>.csv, the same
without the embeddings. Frame size and clip length are those of the checkpoint's config. In a
multi-process job (Cloud TPU, SLURM, Open MPI), run this command in every process.
"""

from absl import flags

from launch import command

WORKDIR, CHECKPOINT, TRUSTED = command.define_checkpoint(
    ", or a .safetensors file of launch/export.py"
)
WEIGHTS = command.define_weights()
SOURCE = command.define_path("source", None, "The packed dataset.", addresses=True, required=True)
SPLIT = flags.DEFINE_string("split", "test", "Split to embed.")
CLIPS = command.define_clips()
OUTPUT = command.define_path("output", None, "Path to write, without an extension.", required=True)


def main() -> None:
    """Embeds the dataset that the flags name."""
    from data_pipelines.io.remote import locate
    from data_pipelines.io.terminal import printable
    from star_jax.distributed import processes
    from star_jax.embedding import embeddings
    from star_jax.embedding.embed import embed, open_to_embed
    from star_jax.network import load_weights

    command.require_file_name(OUTPUT.value)
    output = str(locate(OUTPUT.value))
    processes.start()
    network = load_weights(
        command.either(WORKDIR, CHECKPOINT), weights=WEIGHTS.value, trusted=TRUSTED.value
    )
    split = open_to_embed(SOURCE.value).split(SPLIT.value)
    found = embed(network.with_config(**{"eval.clips": CLIPS.value}), split)
    if not processes.is_first():
        return
    paths = embeddings.save(output.removesuffix(".npz"), found)
    count, width = found.vectors.shape
    written = " and ".join(map(str, paths))
    print(printable(f"{count} tracklets, {width} numbers each, written to {written}"))


if __name__ == "__main__":
    command.run(main)
