/*
 * notice.c
 *		Events of keys that end soon.
 *
 * The events themselves say which ends were told, so a second call tells only
 * what is new.
 *
 * Locking: a lock of these calls, one per database, until the transaction ends.
 * It is of a tuple of key_events in a block that no table has, because any role
 * could take an advisory lock.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/block.h"
#include "storage/lock.h"
#include "storage/off.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/store.h"
#include "compat.h"
#include "key/audit.h"

/* Keys that end soon, and were not told. */
typedef struct Notice
{
	Datum		ahead;			/* interval */
	int64		count;			/* result */
	char	   *events;			/* result: JSON; in the caller's context */
} Notice;

static void find_expiring(void *arg);

PG_FUNCTION_INFO_V1(rk_apikeys_notice_expiring);

/*
 * rk_apikeys.notice_expiring(ahead interval) -> bigint
 *
 * Write an event "expiring" for each key that is good now and ends within that
 * time, unless this end was told.  Return their number.  Raise 22023 if ahead is
 * negative.
 */
Datum
rk_apikeys_notice_expiring(PG_FUNCTION_ARGS)
{
	Interval	zero = {0, 0, 0};
	Notice		notice = {.ahead = PG_GETARG_DATUM(0)};
	Oid			table = store_table("key_events", false);
	LOCKTAG		tag;

	principal_refuse();
	if (DatumGetBool(DirectFunctionCall2(interval_lt, notice.ahead,
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ahead cannot be negative")));
	PreventCommandIfReadOnly("notice_expiring()");
	SET_LOCKTAG_TUPLE(tag, MyDatabaseId, table, InvalidBlockNumber, InvalidOffsetNumber);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	caller_run_as_owner(table, find_expiring, &notice);
	if (notice.count > 0)
		audit_add(notice.events);
	PG_RETURN_INT64(notice.count);
}

/* OwnerWork, under the lock. */
static void
find_expiring(void *arg)
{
	static const char *const query =
		"SELECT count(*), jsonb_agg(jsonb_build_object('tenant', k.tenant, 'key_id', k.key_id,"
		"   'owner', k.owner, 'event', 'expiring', 'changes', jsonb_build_object(k.which, k.ends)))::text"
		" FROM (SELECT tenant, key_id, owner, least(expires_at, grace_until) AS ends,"
		"    CASE WHEN grace_until < expires_at OR expires_at IS NULL"
		"     THEN 'grace_until' ELSE 'expires_at' END AS which"
		"   FROM rk_apikeys.api_keys WHERE enabled AND revoked_at IS NULL) k"
		" WHERE k.ends > now() AND k.ends <= now() + $1"
		"  AND NOT EXISTS (SELECT FROM rk_apikeys.key_events e"
		"   WHERE e.tenant = k.tenant AND e.key_id = k.key_id AND e.event = 'expiring'"
		"    AND coalesce(e.changes ->> 'grace_until', e.changes ->> 'expires_at')::timestamptz = k.ends)";
	Notice	   *notice = arg;
	MemoryContext caller = CurrentMemoryContext;
	Oid			type = INTERVALOID;
	bool		isnull;

	SPI_connect();
	(void) now_execute(NULL, query, 1, &type, &notice->ahead);
	notice->count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1, &isnull));
	if (notice->count > 0)
		notice->events = MemoryContextStrdup(caller,
											 SPI_getvalue(SPI_tuptable->vals[0],
														  SPI_tuptable->tupdesc, 2));
	SPI_finish();
}
