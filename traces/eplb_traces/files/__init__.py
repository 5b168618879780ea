"""Our own file formats for loads and traces, and how a file is written whole or not at all."""
