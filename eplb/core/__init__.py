"""Types that every other folder uses: topology, placement, problem and plan, constraints, migration."""
