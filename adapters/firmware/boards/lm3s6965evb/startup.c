/* Vectors, memory at reset, and what happens when the processor faults. */
#include "registers.h"

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];

int main(void);
void systick_interrupt(void);
void timer_interrupt(void);
void watchdog_interrupt(void);

/* A fault ends in a reset: the lines are safe at once and the model on trial loses one boot. */
static void fault(void)
{
    reset_failed();
}

__attribute__((used)) void reset_handler(void)
{
    const uint32_t *from = data_load;
    for (uint32_t *to = data_start; to < data_end; to++)
        *to = *from++;
    for (uint32_t *to = bss_start; to < bss_end; to++)
        *to = 0;
    main();
    fault();
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const handler vectors[16 + 44] = {
    [0] = (handler)(uintptr_t)stack_top,
    [1] = reset_handler,
    [2] = fault,
    [3] = fault,
    [4] = fault,
    [5] = fault,
    [6] = fault,
    [11] = fault,
    [14] = fault,
    [15] = systick_interrupt,
    [16 + IRQ_UART0] = uart_interrupt,
    [16 + IRQ_WATCHDOG] = watchdog_interrupt,
    [16 + IRQ_TIMER0] = timer_interrupt,
    [16 + IRQ_ETHERNET] = ethernet_interrupt,
};
