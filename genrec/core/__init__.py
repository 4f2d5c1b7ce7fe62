"""What every layer may use: errors, whole-or-nothing files, hashes, progress, packaged downloads."""
