/*
 * usage.c
 *		The record of a key's use.
 *
 * A verify writes key_usage itself, at most once per key and
 * rk_apikeys.usage_resolution, so last_used_at is exact to that resolution and
 * use_count counts such periods, not uses.
 *
 * It never waits, never raises (but for a cancel that the client asked for),
 * and writes nothing where a write would be refused or could make the
 * transaction fail: read-only, REPEATABLE READ and SERIALIZABLE transactions,
 * parallel mode, recovery.
 *
 * Locking: the row in key_usage is taken with SKIP LOCKED and stays locked
 * until the caller's transaction ends.  The first use of a key inserts the row;
 * two at once would wait for each other in the unique index, so it takes an
 * advisory lock first, by trying, and the key FOR KEY SHARE SKIP LOCKED, so that
 * no row is left behind for a key that is being deleted.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "caller.h"
#include "rk_apikeys.h"
#include "usage.h"

/* Seconds before a key whose row was locked is tried again. */
#define RETRY_SECONDS 1
#define RETRY_SLOTS 64

typedef struct Use
{
	const StoredKey *key;
	inet	   *client_addr;	/* NULL: not told */
	TimestampTz at;
	bool		first;			/* the key has no row in key_usage yet */
	bool		recorded;		/* result */
} Use;

/* Keys whose row was locked at the last try, by a hash of the key id. */
static struct
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];
	TimestampTz at;
}			skipped[RETRY_SLOTS];

static bool usage_try_record(Use *use);
static void usage_write(void *arg);

/*
 * Record that the key was used now, from that address (NULL: not told), if it
 * is time to.
 */
void
usage_record(const StoredKey *key, inet *client_addr)
{
	Use			use;
	TimestampTz last_used;
	int			slot;

	if (!rk_apikeys_track_usage || RecoveryInProgress() || XactReadOnly ||
		IsInParallelMode() || IsolationUsesXactSnapshot())
		return;

	use.key = key;
	use.client_addr = client_addr;
	use.at = GetCurrentTimestamp();
	use.first = !store_last_used(key->key_id, &last_used);
	use.recorded = false;
	if (!use.first &&
		!TimestampDifferenceExceeds(last_used, use.at,
									rk_apikeys_usage_resolution * 1000))
		return;

	slot = (unsigned char) (key->key_id[0] * 31 + key->key_id[1]) % RETRY_SLOTS;
	if (strcmp(skipped[slot].key_id, key->key_id) == 0 &&
		!TimestampDifferenceExceeds(skipped[slot].at, use.at,
									RETRY_SECONDS * 1000))
		return;
	if (!usage_try_record(&use))
	{
		strlcpy(skipped[slot].key_id, key->key_id, sizeof(skipped[slot].key_id));
		skipped[slot].at = use.at;
	}
}

/*
 * Record a use in a subtransaction, so that an error in it is not the
 * caller's.  Returns whether it was recorded.
 */
static bool
usage_try_record(Use *use)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			table = store_table("key_usage", true);

	if (!OidIsValid(table))
		return false;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		caller_run_as_owner(table, usage_write, use);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		use->recorded = false;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		ereport(LOG,
				(errmsg("could not record the use of API key \"%s\": %s",
						use->key->key_id, error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	return use->recorded;
}

/* OwnerWork: write the row of a use, unless somebody else has it locked. */
static void
usage_write(void *arg)
{
	static const char *const first =
		"INSERT INTO rk_apikeys.key_usage AS u"
		"  (key_id, tenant, last_used_at, last_used_addr, use_count)"
		" SELECT key_id, tenant, $2, $3, 1"
		"  FROM rk_apikeys.api_keys"
		"  WHERE key_id = $1"
		"   AND pg_try_advisory_xact_lock(hashtext('rk_apikeys.key_usage'), hashtext($1))"
		"  FOR KEY SHARE SKIP LOCKED"
		" ON CONFLICT DO NOTHING";
	static const char *const again =
		"WITH mine AS MATERIALIZED"
		"  (SELECT key_id FROM rk_apikeys.key_usage WHERE key_id = $1"
		"    FOR NO KEY UPDATE SKIP LOCKED)"
		" UPDATE rk_apikeys.key_usage u"
		"  SET last_used_at = greatest(u.last_used_at, $2),"
		"   last_used_addr = coalesce($3, u.last_used_addr), use_count = u.use_count + 1"
		"  FROM mine WHERE u.key_id = mine.key_id";
	static const char *const daily =
		"INSERT INTO rk_apikeys.key_usage_daily AS d"
		"  (key_id, day, environment, tenant, uses)"
		" VALUES ($1, ($2 AT TIME ZONE 'UTC')::date, $4, $5, 1)"
		" ON CONFLICT (key_id, day) DO UPDATE SET uses = d.uses + 1";
	Use		   *use = arg;
	Oid			types[5] = {TEXTOID, TIMESTAMPTZOID, INETOID, TEXTOID, TEXTOID};
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(use->key->key_id);
	values[1] = TimestampTzGetDatum(use->at);
	values[2] = PointerGetDatum(use->client_addr);
	nulls[2] = use->client_addr == NULL ? 'n' : ' ';
	values[3] = PointerGetDatum(use->key->environment);
	values[4] = PointerGetDatum(use->key->tenant);

	SPI_connect();
	SPI_execute_with_args(use->first ? first : again, 3, types, values, nulls,
						  false, 0);
	use->recorded = SPI_processed == 1;
	/* The row of the day belongs to whoever holds the key's usage row. */
	if (use->recorded)
		SPI_execute_with_args(daily, 5, types, values, nulls, false, 0);
	SPI_finish();
}
