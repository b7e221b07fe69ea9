"""`python -m activarium.demo [FOLDER]`."""

import sys

from activarium.demo import main

main(*sys.argv[1:2])
