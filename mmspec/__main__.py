"""`python -m mmspec`: the command line, for where its script is not on the PATH."""

from mmspec.cli import main

if __name__ == "__main__":
    main()
