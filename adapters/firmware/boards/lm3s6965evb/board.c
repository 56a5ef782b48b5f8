/* lm3s6965evb: clock, time, sleep, watchdog and reset. The drivers of its devices are beside it. */
#include "hal.h"
#include "registers.h"

const char hal_board[16] = "lm3s6965evb";

#define PROVISION_PAGE 0x0003fc00u
#define SYSTICK_BITS 24u
#define SYSTICK_TOP ((1u << SYSTICK_BITS) - 1u)

#define RCC_BYPASS (1u << 11)
#define RCC_PWRDN (1u << 13)
#define RCC_USESYSDIV (1u << 22)
#define RCC_50_MHZ (3u << 23)
#define RCC_XTAL_8_MHZ (0xeu << 6)
#define RIS_PLL_LOCKED (1u << 6)

#define RESC_WATCHDOG (1u << 3)
#define RESC_POWER (1u << 1)

#define WATCHDOG_LOAD REG(WATCHDOG)
#define WATCHDOG_CTL REG(WATCHDOG + 0x08u)
#define WATCHDOG_ICR REG(WATCHDOG + 0x0cu)
#define WATCHDOG_LOCK REG(WATCHDOG + 0xc00u)
#define WATCHDOG_TICKS (4u * HAL_CLOCK_HZ)

#define TIMER_CTL REG(TIMER0 + 0x0cu)
#define TIMER_CFG REG(TIMER0)
#define TIMER_MODE REG(TIMER0 + 0x04u)
#define TIMER_IMR REG(TIMER0 + 0x18u)
#define TIMER_ICR REG(TIMER0 + 0x24u)
#define TIMER_LOAD REG(TIMER0 + 0x28u)

/* QEMU keeps no reset cause, so the one who resets leaves it in RAM. What finds the mark of a power-on was the reset pin. */
#define REASON_MAGIC 0x5e5e0000u
static uint32_t reset_reason __attribute__((section(".noinit")));
static enum hal_reset_cause cause;
static volatile uint32_t wraps;

void systick_interrupt(void)
{
    wraps++;
}

void timer_interrupt(void)
{
    TIMER_ICR = 1;
}

/* The counter falls; it is pending from the moment at which it reaches 0. */
uint64_t hal_ticks(void)
{
    uint32_t high, low, pending;
    irq_off();
    low = (0u - SYST_CVR) & SYSTICK_TOP;
    pending = SCB_ICSR & ICSR_PENDSTSET;
    if (pending)
        low = (0u - SYST_CVR) & SYSTICK_TOP;
    high = wraps + (pending ? 1u : 0u);
    irq_on();
    return ((uint64_t)high << SYSTICK_BITS) + low;
}

static void start_clock(void)
{
    SYSCTL_RCC = (SYSCTL_RCC | RCC_BYPASS) & ~RCC_USESYSDIV;
    SYSCTL_RCC = RCC_BYPASS | RCC_XTAL_8_MHZ;
    for (uint32_t tries = 0; tries < 100000 && !(SYSCTL_RIS & RIS_PLL_LOCKED); tries++)
        continue;
    SYSCTL_RCC = RCC_BYPASS | RCC_XTAL_8_MHZ | RCC_USESYSDIV | RCC_50_MHZ;
    SYSCTL_RCC = RCC_XTAL_8_MHZ | RCC_USESYSDIV | RCC_50_MHZ;
}

/* Its first end interrupts, its second resets the chip by itself if interrupts are off. */
static void start_watchdog(void)
{
    WATCHDOG_LOCK = 0x1acce551u;
    WATCHDOG_LOAD = WATCHDOG_TICKS;
    WATCHDOG_CTL = 3;
    NVIC_ISER0 = 1u << IRQ_WATCHDOG;
}

void reset_failed(void)
{
    reset_reason = REASON_MAGIC | HAL_WATCHDOG;
    SCB_AIRCR = AIRCR_RESET;
    for (;;)
        continue;
}

void watchdog_interrupt(void)
{
    reset_failed();
}

static enum hal_reset_cause find_cause(void)
{
    uint32_t left = reset_reason;
    uint32_t chip = SYSCTL_RESC;
    SYSCTL_RESC = 0;
    reset_reason = REASON_MAGIC | HAL_COMMANDED;
    if (chip & RESC_WATCHDOG)
        return HAL_WATCHDOG;
    if ((chip & RESC_POWER) || (left & 0xffff0000u) != REASON_MAGIC)
        return HAL_POWER_ON;
    return (enum hal_reset_cause)(left & 3u);
}

void hal_init(void)
{
    start_clock();
    SYSCTL_RCGC0 = 1u << 3;
    SYSCTL_RCGC1 = 1u << 0 | 1u << 12 | 1u << 16;
    SYSCTL_RCGC2 = 1u << 0 | 1u << 1 | 1u << 3 | 1u << 5 | 1u << 28 | 1u << 30;
    SYST_RVR = SYSTICK_TOP;
    SYST_CVR = 0;
    SYST_CSR = 7;
    cause = find_cause();
    gpio_start();
    uart_start();
    i2c_start();
    TIMER_CFG = 0;
    TIMER_MODE = 1;
    TIMER_IMR = 1;
    NVIC_ISER0 = 1u << IRQ_TIMER0;
    start_watchdog();
    irq_on();
}

/* One shot of the timer ends the sleep; WFI also ends at once on an interrupt that came after the check. */
void hal_idle(uint32_t ticks)
{
    if (ticks < 100)
        return;
    TIMER_CTL = 0;
    TIMER_LOAD = ticks;
    TIMER_CTL = 1;
    irq_off();
    if (!uart_waiting() && !ethernet_waiting()) {
        ethernet_listen();
        __asm__ volatile("wfi" ::: "memory");
    }
    irq_on();
    TIMER_CTL = 0;
}

enum hal_reset_cause hal_reset_cause(void)
{
    return cause;
}

void hal_reset(void)
{
    uart_drain();
    SCB_AIRCR = AIRCR_RESET;
    for (;;)
        continue;
}

void hal_watchdog_feed(void)
{
    WATCHDOG_ICR = 1;
}

const uint8_t *hal_provision_page(void)
{
    return (const uint8_t *)PROVISION_PAGE;
}
