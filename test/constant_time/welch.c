/*
 * welch.c
 *		Whether the time of a compare tells its inputs apart: Welch's t-test
 *		between equal (fixed) and random inputs, in random turns.
 *
 * Prints t.  Between -4.5 and 4.5 no difference was seen.
 *
 * Usage: welch digest_matches|memcmp|loop SAMPLES SEED
 */
#include "postgres.h"

#include <math.h>
#include <time.h>

#include "token/digest.h"

#define LEN DIGEST_SHA512_LEN
#define CALLS 8					/* per sample */

typedef bool (*Compare) (const uint8 *, const uint8 *, size_t);

typedef struct Class
{
	double		n;
	double		mean;
	double		squares;
} Class;

static uint64 state;

static uint64
next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static inline uint64
now(void)
{
#if defined(__x86_64__)
	unsigned	low,
				high;

	__asm__ volatile("mfence\n\tlfence\n\trdtsc\n\tlfence":"=a"(low), "=d"(high)::"memory");
	return (uint64) high << 32 | low;
#else
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64CONST(1000000000) + t.tv_nsec;
#endif
}

static bool
with_memcmp(const uint8 *a, const uint8 *b, size_t len)
{
	return memcmp(a, b, len) == 0;
}

/* What one writes by hand: it leaves at the first difference. */
static bool
with_loop(const uint8 *a, const uint8 *b, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (((const volatile uint8 *) a)[i] != ((const volatile uint8 *) b)[i])
			return false;
	return true;
}

static int
by_size(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a,
				y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

int
main(int argc, char **argv)
{
	Compare		volatile compare;
	int			samples;
	uint64	   *times;
	uint64	   *sorted;
	bool	   *is_random;
	uint64		crop;
	Class		class[2] = {0};
	uint8		stored[LEN],
				presented[LEN],
				noise[LEN];
	volatile int sink = 0;

	if (argc != 4)
		return 2;
	compare = strcmp(argv[1], "digest_matches") == 0 ? digest_matches :
		strcmp(argv[1], "memcmp") == 0 ? with_memcmp : with_loop;
	samples = strtol(argv[2], NULL, 10);
	state = UINT64CONST(0x9E3779B97F4A7C15) + strtol(argv[3], NULL, 10);
	times = malloc(samples * sizeof(uint64));
	sorted = malloc(samples * sizeof(uint64));
	is_random = malloc(samples);
	for (int i = 0; i < LEN; i++)
		stored[i] = next_random();

	for (int i = 0; i < samples; i++)
	{
		uint64		begin;

		/* both classes do the same work, and leave it in the same place */
		for (int j = 0; j < LEN; j += 8)
		{
			uint64		r = next_random();

			memcpy(noise + j, &r, 8);
		}
		is_random[i] = next_random() >> 33 & 1;
		for (int j = 0; j < LEN; j++)
		{
			uint8		mask = -(uint8) is_random[i];

			presented[j] = (noise[j] & mask) | (stored[j] & ~mask);
		}
		begin = now();
		for (int j = 0; j < CALLS; j++)
			sink += compare(stored, presented, LEN);
		times[i] = now() - begin;
	}

	/* what an interrupt has lengthened tells nothing: the slowest tenth goes */
	memcpy(sorted, times, samples * sizeof(uint64));
	qsort(sorted, samples, sizeof(uint64), by_size);
	crop = sorted[samples / 10 * 9];
	for (int i = 0; i < samples; i++)
	{
		Class	   *c = &class[is_random[i]];
		double		delta;

		if (times[i] > crop)
			continue;
		delta = times[i] - c->mean;
		c->n++;
		c->mean += delta / c->n;
		c->squares += delta * (times[i] - c->mean);
	}
	printf("%.2f\n", (class[0].mean - class[1].mean) /
		   sqrt(class[0].squares / (class[0].n - 1) / class[0].n +
				class[1].squares / (class[1].n - 1) / class[1].n));
	return 0;
}
