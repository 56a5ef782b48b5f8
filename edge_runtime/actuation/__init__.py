"""Actuation: `arbiter` decides which state every actuator shall have, `driver` brings the hardware there."""
