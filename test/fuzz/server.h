/*
 * server.h
 *		The little of a server that the fuzzed files call.
 */
#ifndef SERVER_H
#define SERVER_H

#include "postgres.h"

#include <setjmp.h>

/* Where an ERROR goes; set by what expects one. */
extern sigjmp_buf server_error;
extern bool server_error_expected;

extern void server_seed(uint64 seed);

/* A property that must hold; else the fuzzer stops and keeps the input. */
#define HOLDS(property) \
	do { \
		if (!(property)) \
		{ \
			fprintf(stderr, "does not hold: %s\n", #property); \
			abort(); \
		} \
	} while (0)

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

#endif
