"""SGLang's test/registered/: the plan as a nightly test. Whatever is wrong stands in mxfp4-runs/nightly/report.html."""

import subprocess
import unittest

from sglang.test.ci.ci_register import register_cuda_ci

register_cuda_ci(est_time=14400, suite="nightly-1-gpu", nightly=True)


class TestMxfp4Accuracy(unittest.TestCase):
    def test_cutlass_against_marlin(self):
        command = ["mxfp4-validate", "run", "gpt-oss-20b-cutlass-vs-triton.toml", "--out", "mxfp4-runs/nightly"]
        assert subprocess.run(command).returncode == 0


if __name__ == "__main__":
    unittest.main()
