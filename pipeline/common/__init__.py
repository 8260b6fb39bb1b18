"""What every room uses: errors, files, labels, the machine, command lines."""
