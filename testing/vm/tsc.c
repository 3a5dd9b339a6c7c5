/*
 * How fast does the host's time stamp counter run, in kHz? Prints it, after a tenth of a second.
 * An emulated kernel that is not told hangs now and then while it measures it itself; driver/plugin/src/host/tsc.rs does
 * the same for the driver.
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct pair {
	unsigned long long counter, nanoseconds;
};

/* Clock and counter at the same moment: of a few tries, the one that was interrupted least. */
static struct pair now(void)
{
	struct pair best = {0};
	unsigned long long narrowest = ~0ULL;
	for (int i = 0; i < 16; i++) {
		struct timespec time;
		unsigned long long before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &time);
		unsigned long long width = __rdtsc() - before;
		if (width < narrowest) {
			narrowest = width;
			best.counter = before + width / 2;
			best.nanoseconds = (unsigned long long)time.tv_sec * 1000000000 + (unsigned long long)time.tv_nsec;
		}
	}
	return best;
}

int main(void)
{
	struct timespec tenth = {.tv_nsec = 100000000};
	struct pair from = now();
	nanosleep(&tenth, NULL);
	struct pair to = now();
	return printf("%llu\n", (to.counter - from.counter) * 1000000 / (to.nanoseconds - from.nanoseconds)) < 0;
}
