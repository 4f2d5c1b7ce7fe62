"""The version, alone in a module so that asking for it imports nothing else."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("genrec")  # the git tag's, as it was when this was built or installed
except PackageNotFoundError:  # run from its folder, and installed nowhere
    __version__ = "0.0"
