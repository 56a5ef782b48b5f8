"""The gateway files in the pages of the drivers are what the drivers take, and every option is told there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from adapters import meters, microcontroller, modbus, mqtt
from adapters.microcontroller.adapter import Options as NodeOptions
from adapters.mqtt.adapter import Options as MqttOptions
from adapters.node.adapter import LineSpec
from edge_runtime.clock import VirtualClock

PAGES = Path(__file__).resolve().parents[2] / "docs" / "adapters"
FACTORIES = {
    "meter": meters.open_adapter,
    "modbus": modbus.open_adapter,
    "mqtt": mqtt.open_adapter,
    "microcontroller": microcontroller.open_adapter,
}
PAGE_OF = {"meter": "serial-meters", "modbus": "modbus", "mqtt": "mqtt", "microcontroller": "microcontroller"}
OPTIONS = {
    "meter": [meters.Options],
    "modbus": [modbus.Options],
    "mqtt": [MqttOptions],
    "microcontroller": [NodeOptions, LineSpec],
}
BUILT = {"serial-meters": 2, "modbus": 2, "mqtt": 1, "microcontroller": 1}


@pytest.mark.parametrize("page", BUILT)
def test_every_adapter_of_a_page_is_built(page: str) -> None:
    built = 0
    for text in re.findall(r"```yaml\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL):
        document = yaml.safe_load(text)
        for name, spec in document.get("adapters", {}).items():
            adapter = FACTORIES[spec["driver"]](name, spec["options"], VirtualClock())
            built += 1
            for sensor in document.get("sensors", {}).values():
                known = [info.channel for info in adapter.channels()] if spec["driver"] == "modbus" else []
                assert not known or sensor["channel"] in known
    assert built == BUILT[page]


@pytest.mark.parametrize("driver", PAGE_OF)
def test_every_option_is_on_its_page(driver: str) -> None:
    text = (PAGES / f"{PAGE_OF[driver]}.md").read_text()
    names = [field.name for options in OPTIONS[driver] for field in msgspec.structs.fields(options)]
    assert not [name for name in names if not re.search(rf"`([^`]*\.)?{name}\b", text)]
