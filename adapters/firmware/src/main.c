/* The sensor node: starts its parts and turns the main loop, asleep whenever no part has work. */
#include "clock.h"
#include "coap_server.h"
#include "commands.h"
#include "hal.h"
#include "identity.h"
#include "lines.h"
#include "link.h"
#include "net.h"
#include "sensor.h"
#include "store.h"
#include "upload.h"

int main(void)
{
    hal_init();
    lines_start();
    identity_start();
    clock_update();
    store_start();
    net_start();
    link_notice(NOTICE_BOOTED, (uint8_t)hal_reset_cause(), store_boot_count());
    for (;;) {
        hal_watchdog_feed();
        clock_update();
        lines_poll();
        link_poll();
        net_poll();
        sensor_poll();
        commands_poll();
        coap_poll();
        store_poll();
        upload_poll();
        hal_idle(clock_sleep_ticks());
    }
}
