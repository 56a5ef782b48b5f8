"""What a sensor node is, whatever it is reached over: its messages, its interface, model updates, the adapter on top, the commands."""
