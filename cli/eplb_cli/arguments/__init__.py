"""What commands take: options, topology, model shape, constraints, files."""
