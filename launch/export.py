"""Exports a checkpoint's network for archiving, for the authors' PyTorch code or for deployment.

  python launch/export.py --workdir=runs/star

--format=safetensors, the default: a self-contained, versioned archive of weights and config. It
does not depend on a version of JAX or Orbax; `star_jax.load_weights` reads it.

  python launch/export.py --workdir=runs/star --format=pytorch --output=star_pytorch

--format=pytorch: the weights under the names of the authors' PyTorch code, for networks of its
architecture (ResNet-50, guidance `frame`, pooling `guided`). It is a safetensors file, too:

  from safetensors.torch import load_file
  network.load_state_dict(load_file("star_pytorch.safetensors"))
  network.eval()

  python launch/export.py --checkpoint=runs/star/checkpoints/34840 --format=stablehlo

--format=stablehlo: for each modality a function from clips to embeddings that only needs JAX, on
CPUs, NVIDIA GPUs and TPUs. JAX guarantees that it runs with versions of JAX up to 6 months newer
and 3 weeks older than the one that writes it: use it for deployment, not for archiving.

Writes <output>.safetensors, or <output>-visible.stablehlo and <output>-infrared.stablehlo; files of
these names are replaced. Runs as a single process, on any device, wherever the network was trained.
docs/export.md shows how to use each format.
"""

from absl import flags

from launch import command

WORKDIR, CHECKPOINT, TRUSTED = command.define_checkpoint()
WEIGHTS = command.define_weights()
FORMAT = flags.DEFINE_enum(
    "format", "safetensors", ["safetensors", "pytorch", "stablehlo"], "What to write."
)
OUTPUT = command.define_path(
    "output",
    None,
    "Path to write, without an extension; default: <workdir>/export/<step>, then -ema for those "
    "weights, then -pytorch for that format.",
    addresses=True,
)


def main() -> None:
    """Exports the checkpoint that the flags name."""
    import jax

    from data_pipelines.io.files import write_file
    from data_pipelines.io.remote import locate
    from data_pipelines.io.terminal import log
    from data_pipelines.schema import MODALITIES
    from star_jax import weights
    from star_jax.network import locate_checkpoint, restore_network

    if OUTPUT.value is not None:
        command.require_file_name(OUTPUT.value)
    workdir, step = locate_checkpoint(command.either(WORKDIR, CHECKPOINT))
    step, config, model, variables, _ = restore_network(
        workdir, step, weights=WEIGHTS.value, trusted=TRUSTED.value
    )
    variables = jax.device_get(variables)  # NumPy converts them without compiling anything
    ending = "stablehlo" if FORMAT.value == "stablehlo" else "safetensors"
    if OUTPUT.value is None:
        suffix = "-ema" if WEIGHTS.value == "ema" else ""
        suffix += "-pytorch" if FORMAT.value == "pytorch" else ""
        output = str(workdir / "export" / f"{step}{suffix}")
    else:
        output = OUTPUT.value.removesuffix(f".{ending}")

    paths = [f"{output}.{ending}"]
    if FORMAT.value == "safetensors":
        weights.save_archive(
            paths[0], config=config, variables=variables, step=step, weights=WEIGHTS.value
        )
    elif FORMAT.value == "pytorch":
        arrays = weights.to_authors(variables, config.model)
        weights.save_arrays(paths[0], arrays, {"format": "pt"})
        if (config.model.keypoints, config.model.graph_edges) != ("pixels", "first_frame"):
            log(
                f"note: trained with config.model.keypoints={config.model.keypoints!r} and "
                f"graph_edges={config.model.graph_edges!r}; the authors' code computes with "
                "'pixels' and 'first_frame', so it computes different embeddings"
            )
    else:
        paths = [f"{output}-{modality}.{ending}" for modality in MODALITIES]
        for path, modality in zip(paths, MODALITIES, strict=True):
            content = weights.to_stablehlo(
                model,
                variables,
                modality,
                frame_size=config.data.frame_size,
                clip_length=config.data.clip_length,
            )
            write_file(path, content)
    for path in paths:
        print(f"step {step} written to {path} ({locate(path).stat().length / 1e6:.1f} MB)")


if __name__ == "__main__":
    command.run(main)
