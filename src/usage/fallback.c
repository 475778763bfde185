/*
 * fallback.c
 *		The record of a key's use where there is no shared memory.
 *
 * The verify itself writes key_usage, at most once per key and
 * rk_apikeys.usage_resolution.  So last_used_at is exact to that resolution, and
 * use_count counts such periods, not uses.
 *
 * A record never waits.  It raises nothing, except a cancel that the client
 * asked for.  It writes nothing where a write would be refused or could make
 * the transaction fail: in read-only, REPEATABLE READ and SERIALIZABLE
 * transactions, in parallel mode, in recovery, in pg_upgrade.
 *
 * Locking: the row in key_usage is taken with SKIP LOCKED and stays locked until
 * the caller's transaction ends.  The first use of a key inserts the row.  Two
 * first uses at once would wait for each other in the unique index, so the
 * insert first tries for an advisory lock.  It also takes the key FOR KEY SHARE
 * SKIP LOCKED, so that no row is left behind for a key that is being deleted.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/contain.h"
#include "base/grant.h"
#include "base/settings.h"
#include "compat.h"
#include "usage/shared.h"

/* Seconds before a key whose row was locked is tried again. */
#define RETRY_SECONDS 1
#define RETRY_SLOTS 64

typedef struct Use
{
	const StoredKey *key;
	inet	   *client_addr;	/* NULL: not given */
	TimestampTz at;
	bool		first;			/* the key has no row in key_usage yet */
	Oid			table;			/* key_usage */
	bool		recorded;		/* result */
} Use;

/* Keys whose row was locked at the last try, by a hash of the key id. */
static struct
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];
	TimestampTz at;
}			skipped[RETRY_SLOTS];

static bool try_record(Use *use);
static void record_as_owner(void *arg);
static void write_use(void *arg);

/*
 * Record that the key was used now, from that address (NULL: not given), unless
 * its last record is younger than usage_resolution.
 */
void
usage_record_in_table(const StoredKey *key, inet *client_addr, TimestampTz now)
{
	Use			use;
	StoredUsage usage;
	int			slot;

	if (RecoveryInProgress() || XactReadOnly || IsInParallelMode() ||
		IsolationUsesXactSnapshot() || IsBinaryUpgrade)
		return;

	use.key = key;
	use.client_addr = client_addr;
	use.at = now;
	use.first = !store_find_usage(key->key_id, &usage);
	use.recorded = false;
	if (!use.first &&
		usage.last_used_at != DT_NOBEGIN &&
		!TimestampDifferenceExceeds(usage.last_used_at, use.at,
									settings_usage_resolution * 1000))
		return;

	slot = (unsigned char) (key->key_id[0] * 31 + key->key_id[1]) % RETRY_SLOTS;
	if (strcmp(skipped[slot].key_id, key->key_id) == 0 &&
		!TimestampDifferenceExceeds(skipped[slot].at, use.at,
									RETRY_SECONDS * 1000))
		return;
	if (!try_record(&use))
	{
		strlcpy(skipped[slot].key_id, key->key_id, sizeof(skipped[slot].key_id));
		skipped[slot].at = use.at;
	}
}

/*
 * Record a use in a subtransaction, so that an error does not fail the caller's
 * statement.  Return whether the use was recorded.
 */
static bool
try_record(Use *use)
{
	ErrorData  *error;

	use->table = store_table("key_usage", true);
	if (!OidIsValid(use->table))
		return false;
	error = contain_errors(record_as_owner, use);
	if (error == NULL)
		return use->recorded;
	ereport(LOG,
			(errmsg("could not record the use of API key \"%s\": %s",
					use->key->key_id, error->message)));
	FreeErrorData(error);
	return false;
}

/* ContainedWork */
static void
record_as_owner(void *arg)
{
	Use		   *use = arg;

	caller_run_as_owner(use->table, write_use, use);
}

/* OwnerWork: write the row of a use, unless another transaction has it locked. */
static void
write_use(void *arg)
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
#define DAILY(column, value) \
	"INSERT INTO rk_apikeys.key_usage_daily AS d" \
	"  (key_id, day, environment, tenant, uses" column ")" \
	" VALUES ($1, ($2 AT TIME ZONE 'UTC')::date, $4, $5, 1" value ")" \
	" ON CONFLICT (key_id, day) DO UPDATE SET uses = d.uses + 1"
	Use		   *use = arg;
	inet		addr = {0};
	bool		has_family = store_has_text("key_usage_daily", "family");
	Oid			types[6] = {TEXTOID, TIMESTAMPTZOID, INETOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(use->key->key_id);
	values[1] = TimestampTzGetDatum(use->at);
	values[2] = InetPGetDatum(&addr);
	nulls[2] = use->client_addr == NULL ? 'n' : ' ';
	if (use->client_addr != NULL)
	{
		grant_host(use->client_addr, &addr.inet_data);
		SET_INET_VARSIZE(&addr);
	}
	values[3] = PointerGetDatum(use->key->environment);
	values[4] = PointerGetDatum(use->key->tenant);
	values[5] = CStringGetTextDatum(use->key->family);

	SPI_connect();
	SPI_execute_with_args(use->first ? first : again, 3, types, values, nulls,
						  false, 0);
	use->recorded = SPI_processed == 1;
	/* Whoever has locked the key's usage row may write the row of the day. */
	if (use->recorded)
		SPI_execute_with_args(has_family ? DAILY(", family", ", NULLIF($6, $1)") : DAILY("", ""),
							  has_family ? 6 : 5, types, values, nulls, false, 0);
	SPI_finish();
}
