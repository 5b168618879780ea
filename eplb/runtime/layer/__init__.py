"""One MoE layer: gate, replica choice, placement tables, the order of the steps."""
