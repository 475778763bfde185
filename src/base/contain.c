/*
 * contain.c
 *		Work whose errors are not the caller's.
 *
 * A verify records use, and may have to attach shared memory.  Neither may fail
 * the caller's statement, so such work runs in a subtransaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/contain.h"
#include "compat.h"

/*
 * Run work(arg) in a subtransaction.  Return NULL if the work succeeded.  If it
 * raised, roll the subtransaction back and return the error, palloc'd in the
 * caller's context; the caller frees it with FreeErrorData().  A cancel, by
 * the client or by a timeout, is raised again.
 *
 * Must run in a transaction, and not in parallel mode.
 */
ErrorData *
contain_errors(ContainedWork work, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	Assert(IsTransactionState() && !IsInParallelMode());
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
	}
	PG_END_TRY();
	return error;
}
