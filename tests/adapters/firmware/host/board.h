/* The firmware as a program of this machine, under the compiler's sanitizers. */
#ifndef BOARD_H
#define BOARD_H

#define HAL_CLOCK_HZ 50000000u
#define HAL_LINES 4u

#endif
