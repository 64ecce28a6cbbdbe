"""`python -m hsm.cli` is `hsm`."""

from hsm.cli._main import main

main()
