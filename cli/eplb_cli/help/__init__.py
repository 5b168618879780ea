"""What `--help` shows beside the options: panels, examples, pages of the manual."""
