/*
 * as_owner.c
 *		A statement that runs as the owner of api_keys.
 *
 * Trust: the callers say why their caller may cause the statement.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"

#include "base/caller.h"
#include "base/store.h"
#include "compat.h"
#include "key/as_owner.h"

static void run(void *arg);

/* Run a statement as the owner of api_keys, and set its results. */
void
as_owner(OwnerStatement *statement)
{
	caller_run_as_owner(store_table("api_keys", false), run, statement);
}

/* OwnerWork: run the statement.  Its result is in the caller's context. */
static void
run(void *arg)
{
	OwnerStatement *statement = arg;
	MemoryContext caller = CurrentMemoryContext;

	SPI_connect();
	SPI_execute_with_args(statement->query, statement->nargs, statement->types,
						  statement->values, statement->nulls, false, 0);
	statement->processed = SPI_processed;
	statement->first = NULL;
	if (SPI_tuptable != NULL && SPI_processed > 0)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		statement->first = cstring_to_text(value);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
}
