"""The gateway files in the pages of the drivers `meter` and `modbus` are what the drivers take."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from adapters import meters, modbus
from edge_runtime.clock import VirtualClock

PAGES = Path(__file__).resolve().parents[2] / "docs" / "adapters"
FACTORIES = {"meter": meters.open_adapter, "modbus": modbus.open_adapter}
OPTIONS = {
    "meter": [field.name for field in msgspec.structs.fields(meters.Options)],
    "modbus": [field.name for field in msgspec.structs.fields(modbus.Options) if field.name != "devices"],
}


@pytest.mark.parametrize("page", ["serial-meters", "modbus"])
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
    assert built == 2


@pytest.mark.parametrize(("page", "driver"), [("serial-meters", "meter"), ("modbus", "modbus")])
def test_every_option_is_on_its_page(page: str, driver: str) -> None:
    text = (PAGES / f"{page}.md").read_text()
    assert not [option for option in OPTIONS[driver] if f"`{option}`" not in text]
