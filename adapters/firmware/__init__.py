"""The firmware of our own sensor node, in C, and what builds it. The protocol is in PROTOCOL.md, the guide in docs/adapters/node-firmware.md."""
