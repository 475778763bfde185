/*
 * as_owner.h
 *		A statement that runs as the owner of api_keys.
 */
#ifndef AS_OWNER_H
#define AS_OWNER_H

#include "postgres.h"

typedef struct OwnerStatement
{
	const char *query;
	int			nargs;
	Oid		   *types;
	Datum	   *values;
	char	   *nulls;
	uint64		processed;		/* result: rows */
	text	   *first;			/* result: the first column of the first row */
} OwnerStatement;

extern void as_owner(OwnerStatement *statement);

#endif
