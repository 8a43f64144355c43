"""What keeps a run going: bad steps, roll-backs, hangs, faulty devices, and where its time went (docs/faults.md)."""
