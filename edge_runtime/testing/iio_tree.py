"""A recorded libiio context (its XML) as the files that the kernel had shown, for machines without such a sensor."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

_MOST_BYTES = 4 * 1024 * 1024


def write_iio_tree(context: Path, root: Path) -> list[Path]:
    """Every attribute with a file name below `root`/sys; gives the devices' folders. Raises ValueError for what is no context."""
    text = context.read_text()
    if len(text) > _MOST_BYTES or "<!ENTITY" in text:
        raise ValueError(f"{context}: expected a libiio context of at most {_MOST_BYTES} bytes and without entities")
    written = []
    for device in ElementTree.fromstring(text).iter("device"):  # noqa: S314 - entities are refused above
        name = device.get("id", "")
        home = "sys/class/hwmon" if name.startswith("hwmon") else "sys/bus/iio/devices"
        folder = root / home / re.sub(r"[^\w:.-]", "_", name)
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder)
        (folder / "name").write_text(f"{device.get('name', name)}\n")
        for attribute in device.iter("attribute"):
            file = attribute.get("filename") or attribute.get("name") or "unnamed"
            (folder / re.sub(r"[^\w-]", "_", file)).write_text(f"{attribute.get('value', '')}\n")
    return written
