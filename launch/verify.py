"""Checks that this machine computes STAR right. Run it first on a device of a new kind.

  python launch/verify.py
  python launch/verify.py --json=verify.json

Compared are, on whatever devices JAX finds:
- two small programs that XLA's compiler for CPUs can get wrong, with NumPy;
- the `reference` network with the numbers of the authors' network, which come with the package:
  inference on 288x144 frames and a training pass, in float32 and, with wider tolerances, bfloat16;
- where there are several devices, a training step on all of them with one on the first.

On a CPU it takes three minutes of processor time, which two cores share. Printed are the device,
the versions, and a table of the largest differences and of what they may be: as shares of a
tensor's largest magnitude, or of the number itself for losses and gradient norms. Ends with code 1
if anything is out. Where several processes make up a machine, each checks the devices of its own.
The environment variable STAR_PARITY_FIXTURES names a folder of further known numbers,
eval_seed*.npz and train_seed*.npz.
"""

import math
import sys

import command
from absl import flags

JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")


def main() -> None:
    """Runs all checks, prints a table and ends with code 1 if one failed."""
    from configs import star_hitsz_vcm_reference
    from data_pipelines.io.files import write_json
    from data_pipelines.io.tables import aligned
    from star_jax.training.run_files import (
        environment,  # imports JAX, which --help should not wait for
    )
    from star_jax.verify import verify

    around = environment()
    checks = verify(star_hitsz_vcm_reference.get_config())
    passed = all(check.passed for check in checks)
    versions = [f"{name} {around['packages'][name]}" for name in ("jax", "jaxlib", "flax")]
    print(f"{len(around['devices'])} x {around['devices'][0]}; {', '.join(versions)}")
    print(f"XLA_FLAGS={around['xla_flags']}\n")
    rows = [
        [check.what, f"{check.difference:.1e}", f"{check.tolerance:.1e}", verdict(check.passed)]
        for check in checks
    ]
    print(aligned([["", "largest difference", "tolerance", ""], *rows]))
    print("\nthis machine computes STAR right" if passed else "\nOUT OF TOLERANCE: do not use it")
    if JSON.value:
        results = [
            {
                "what": check.what,
                "difference": check.difference if math.isfinite(check.difference) else None,
                "tolerance": check.tolerance,
                "passed": check.passed,
            }
            for check in checks
        ]
        write_json(JSON.value, {**around, "passed": passed, "checks": results})
    sys.exit(0 if passed else 1)


def verdict(passed: bool) -> str:
    """Returns what the table says of a check."""
    return "ok" if passed else "OUT"


if __name__ == "__main__":
    command.run(main)
