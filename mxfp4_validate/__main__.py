"""`python -m mxfp4_validate`."""

import sys

from mxfp4_validate.cli import main

sys.exit(main())
