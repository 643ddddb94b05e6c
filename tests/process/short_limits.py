"""Run `serve` with connection limits given as JSON on the command line, so that tests need not wait 75 s.

python -m tests.process.short_limits '{"idle_timeout": 1}'
"""

import sys
from argparse import Namespace

import msgspec

from gateway.cli.serve import run
from gateway.guard import Limits

if __name__ == "__main__":
    sys.exit(run(Namespace(), msgspec.json.decode(sys.argv[1], type=Limits)))
