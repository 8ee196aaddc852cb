"""`python -m bivallate` is the command line."""

from bivallate.cli import main

if __name__ == "__main__":
    main()
