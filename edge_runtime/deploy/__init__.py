"""A gateway's side of an update: slots on disk, the trial of what is offered, the health gate, and the way back."""
