"""`python -m trainforge` is the command `trainforge`."""

from trainforge.cli import main

if __name__ == "__main__":
    main()
