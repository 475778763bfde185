/*
 * now.h
 *		Statements that see what is committed now, at every isolation level.
 */
#ifndef NOW_H
#define NOW_H

#include "executor/spi.h"

extern uint64 now_execute(SPIPlanPtr *kept, const char *query, int nargs,
						  Oid *types, Datum *values);

#endif
