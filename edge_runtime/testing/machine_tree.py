"""A small machine as files: the parts of /proc and /sys that the driver `linux` reads, to be changed while it looks.

One core pair, one disk, one network card, a sensor chip of each sort, a battery and a light. Every file holds what a real kernel
writes there.
"""

from __future__ import annotations

from pathlib import Path

_FILES = {
    "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 50 0 50 350 50 0 0 0 0 0\ncpu1 50 0 50 350 50 0 0 0 0 0\nintr 1 2 3\nctxt 1000\n",
    "proc/loadavg": "0.50 0.25 0.10 1/100 4242\n",
    "proc/uptime": "1234.56 2000.00\n",
    "proc/meminfo": "MemTotal: 1024000 kB\nMemFree: 100000 kB\nMemAvailable: 256000 kB\nSwapTotal: 1000 kB\nSwapFree: 750 kB\n",
    "proc/pressure/cpu": "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/memory": "some avg10=2.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=0\n",
    "proc/self/mounts": "/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /bind ext4 rw 0 0\n/dev/sdb1 /data\\040disk ext4 rw 0 0\n"
    "/dev/loop0 /snap squashfs ro 0 0\nserver:/x /net nfs rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
    "proc/net/dev": "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
    "  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n",
    "sys/class/net/eth0/carrier": "1\n",
    "sys/block/sda/size": "1000\n",
    "sys/block/sda/stat": "10 0 200 5 20 0 400 6 0 700 800\n",
    "sys/block/loop0/size": "8\n",
    "sys/block/loop0/stat": "1 0 2 3 4 0 5 6 0 7 8\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1000000\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "41500\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon0/temp1_crit": "100000\n",
    "sys/class/hwmon/hwmon0/fan1_input": "1200\n",
    "sys/class/hwmon/hwmon0/in0_input": "12050\n",
    "sys/class/hwmon/hwmon0/curr1_input": "2500\n",
    "sys/class/hwmon/hwmon0/power1_average": "30500000\n",
    "sys/class/hwmon/hwmon0/humidity1_input": "45500\n",
    "sys/class/hwmon/hwmon1/name": "lm75\n",
    "sys/class/hwmon/hwmon1/temp1_input": "-5250\n",
    "sys/class/hwmon/hwmon2/name": "lm75\n",
    "sys/class/hwmon/hwmon2/temp1_input": "25500\n",
    "sys/class/hwmon/hwmon2/temp1_fault": "0\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52125\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/power_supply/BAT0/capacity": "87\n",
    "sys/class/power_supply/BAT0/voltage_now": "12345000\n",
    "sys/class/power_supply/AC/online": "1\n",
    "sys/class/leds/status/brightness": "0\n",
    "sys/class/leds/status/max_brightness": "255\n",
}


class MachineTree:
    """The files of one machine below `root`, which is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path, text in _FILES.items():
            self.write(path, text)
        for mount in ("bind", "data disk", "snap", "net", "run"):
            (root / mount).mkdir()
        for number, device in (("1", "0-0048"), ("2", "0-0049")):
            (root / "sys/devices/i2c" / device).mkdir(parents=True)
            (root / f"sys/class/hwmon/hwmon{number}/device").symlink_to(root / "sys/devices/i2c" / device)

    def write(self, path: str, text: str) -> None:
        """Puts a file there, or another text into it."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def remove(self, path: str) -> None:
        """Takes a file away."""
        (self.root / path).unlink()

    def read(self, path: str) -> str:
        """What the file holds, without blanks at its ends."""
        return (self.root / path).read_text().strip()
