"""Checks that this machine computes STAR correctly. Run it first on a new kind of device.

  python launch/verify.py
  python launch/verify.py --json=verify.json

On the devices that JAX finds, it compares
- two small programs that XLA's CPU compiler can get wrong with NumPy;
- the `reference` network with recorded outputs of the authors' network, which ship with the
  package: inference on 288x144 frames and a training pass, in float32 and, with wider tolerances,
  in bfloat16;
- if there are several devices, a training step on all of them with one on the first.

On a CPU this takes three minutes of processor time, spread over two cores. Prints the device, the
versions, and a table of the largest differences and their tolerances, relative to the tensor's
largest magnitude, or to the value itself for losses and gradient norms. Exits with code 1 if a
difference exceeds its tolerance. In a multi-process job, each process checks its own devices. The
environment variable STAR_PARITY_FIXTURES names a folder of additional recorded outputs,
eval_seed*.npz and train_seed*.npz.
"""

import math
import sys

from launch import command

JSON = command.define_path("json", None, "Also write the results to this file.", addresses=True)


def main() -> None:
    """Runs all checks, prints a table and exits with code 1 if one failed."""
    from configs import star_hitsz_vcm, star_hitsz_vcm_reference
    from data_pipelines.io.files import write_json
    from data_pipelines.io.tables import aligned
    from star_jax.runs.run_files import (
        environment,  # imports JAX, which --help should not wait for
    )
    from star_jax.verify import verify

    around = environment()
    checks = verify(star_hitsz_vcm_reference.get_config(), star_hitsz_vcm.get_config())
    passed = all(check.passed for check in checks)
    versions = [f"{name} {around['packages'][name]}" for name in ("jax", "jaxlib", "flax")]
    print(f"{len(around['devices'])} x {around['devices'][0]}; {', '.join(versions)}")
    print(f"XLA_FLAGS={around['xla_flags']}\n")
    rows = [
        [check.what, f"{check.difference:.1e}", f"{check.tolerance:.1e}", verdict(check.passed)]
        for check in checks
    ]
    print(aligned([["", "largest difference", "tolerance", ""], *rows]))
    print(
        "\nVerification passed"
        if passed
        else "\nVerification failed: results on this machine are not reliable"
    )
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
    """Returns the table entry for the result of a check."""
    return "ok" if passed else "OUT"


if __name__ == "__main__":
    command.run(main)
