"""What a run goes on from: whole folders of its state, here and elsewhere."""
