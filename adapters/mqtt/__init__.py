"""Devices that speak MQTT to a local broker (Shelly, Tasmota, Zigbee2MQTT, Home Assistant discovery, any other): the driver `mqtt`."""

from adapters.mqtt.adapter import MqttAdapter, Options, open_adapter

__all__ = ["MqttAdapter", "Options", "open_adapter"]
