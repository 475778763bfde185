/*
 * views.c
 *		Shared memory, for the views: keys' use, limits, and the server's counters.
 *
 * Trust: any role that reads the views can call the functions about keys
 * directly, so they answer as the tables' policies would.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "base/caller.h"
#include "base/principal.h"
#include "base/stats.h"
#include "compat.h"
#include "key/cache.h"
#include "key/limit.h"
#include "key/session.h"
#include "key/verify.h"
#include "token/token.h"
#include "usage/usage.h"

/* Bytes of a search that may be a token, with the blanks around it. */
#define SEARCH_MAX_LEN 1024

/* Of _live_usage(), and of _limit_state(). */
#define LIVE_COLUMNS 3
#define STATE_COLUMNS 3

/* Whose keys the caller may see; NULL: of all tenants, environments or owners. */
typedef struct Viewer
{
	char	   *tenant;
	char	   *environment;
	const char *owner;
} Viewer;

/* What a statement knows of unrecorded uses. */
typedef struct Unrecorded
{
	TimestampTz *times;			/* as usage_lost_times() has them */
} Unrecorded;

/* Of _stats(): the counters are between the first and the last five. */
#define STATS_COLUMNS (1 + STATS_ALL + 5)

static Datum stats_row(FunctionCallInfo fcinfo, bool old);
static UsageLook *look_at_own(int *count);
static bool find_viewer(Viewer *viewer);
static bool may_see_limit(const LimitRow *row);
static bool may_see(const Viewer *viewer, const StoredKey *key);
static bool finds_key(const Viewer *viewer, const char *key_id);
static text *find_searched(const char *s, size_t len);
static bool same_text(text *a, const char *b);
static bool look_for_caller(FunctionCallInfo fcinfo, UsageLook *look);

PG_FUNCTION_INFO_V1(rk_apikeys_live_last_used_at);
PG_FUNCTION_INFO_V1(rk_apikeys_live_last_used_addr);
PG_FUNCTION_INFO_V1(rk_apikeys_live_use_count);
PG_FUNCTION_INFO_V1(rk_apikeys_live_usage);
PG_FUNCTION_INFO_V1(rk_apikeys_unrecorded_use_at);
PG_FUNCTION_INFO_V1(rk_apikeys_sees_key);
PG_FUNCTION_INFO_V1(rk_apikeys_searched_key_id);
PG_FUNCTION_INFO_V1(rk_apikeys_limit_state);
PG_FUNCTION_INFO_V1(rk_apikeys_stats);
PG_FUNCTION_INFO_V1(rk_apikeys_stats_0_3);

/*
 * rk_apikeys._live_last_used_at(key_id text) -> timestamptz
 *
 * Return the last use that shared memory has of a key; NULL if there is none, or
 * the caller may not see the key.
 */
Datum
rk_apikeys_live_last_used_at(PG_FUNCTION_ARGS)
{
	UsageLook	look;

	if (!look_for_caller(fcinfo, &look) || look.last_used_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(look.last_used_at);
}

/*
 * rk_apikeys._live_last_used_addr(key_id text) -> inet
 *
 * Return the last address that shared memory has of a key, likewise.
 */
Datum
rk_apikeys_live_last_used_addr(PG_FUNCTION_ARGS)
{
	UsageLook	look;
	inet	   *addr;

	if (!look_for_caller(fcinfo, &look) || !look.has_addr)
		PG_RETURN_NULL();
	addr = palloc0(sizeof(inet));
	addr->inet_data = look.addr;
	SET_INET_VARSIZE(addr);
	PG_RETURN_INET_P(addr);
}

/* rk_apikeys._live_use_count(key_id text) -> bigint, likewise. */
Datum
rk_apikeys_live_use_count(PG_FUNCTION_ARGS)
{
	UsageLook	look;

	if (!look_for_caller(fcinfo, &look))
		PG_RETURN_NULL();
	PG_RETURN_INT64(look.use_count);
}

/*
 * rk_apikeys._unrecorded_use_at(key_id text) -> timestamptz
 *
 * Return when a use of the key may have found no room; NULL if there is none, or
 * the caller may not see the key.  A statement sees the times of its first call.
 */
Datum
rk_apikeys_unrecorded_use_at(PG_FUNCTION_ARGS)
{
	text	   *key_id = PG_GETARG_TEXT_PP(0);
	Unrecorded *unrecorded = fcinfo->flinfo->fn_extra;
	Viewer		viewer;
	TimestampTz at;

	if (unrecorded == NULL)
	{
		MemoryContext caller;

		(void) usage_is_shared();
		caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		unrecorded = palloc(sizeof(Unrecorded));
		unrecorded->times = usage_lost_times();
		fcinfo->flinfo->fn_extra = unrecorded;
		MemoryContextSwitchTo(caller);
	}
	if (VARSIZE_ANY_EXHDR(key_id) != TOKEN_KEY_ID_LEN ||
		(at = usage_lost_time(unrecorded->times, VARDATA_ANY(key_id))) == 0 ||
		!find_viewer(&viewer))
		PG_RETURN_NULL();
	if ((viewer.tenant != NULL || viewer.environment != NULL || viewer.owner != NULL) &&
		!finds_key(&viewer, text_to_cstring(key_id)))
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(at);
}

/*
 * rk_apikeys._live_usage() -> setof (key_id, last_used_at, use_count)
 *
 * Return the same for all keys that the caller may see, except keys for which
 * the tables have as much.
 */
Datum
rk_apikeys_live_usage(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Viewer		viewer;
	UsageLook  *looks;
	int			count;

	InitMaterializedSRF(fcinfo, 0);
	if (result->setDesc->natts != LIVE_COLUMNS)
		elog(ERROR, "_live_usage returns another row than expected");
	if (!find_viewer(&viewer))
		return (Datum) 0;
	looks = viewer.owner != NULL ? look_at_own(&count) :
		usage_look_all(viewer.tenant, GetCurrentTransactionStartTimestamp(), &count);
	for (int i = 0; i < count; i++)
	{
		Datum		values[LIVE_COLUMNS];
		bool		nulls[LIVE_COLUMNS] = {false, false, false};

		CHECK_FOR_INTERRUPTS();
		if (viewer.environment != NULL &&
			strcmp(looks[i].environment, viewer.environment) != 0)
			continue;
		values[0] = CStringGetTextDatum(looks[i].key_id);
		values[1] = TimestampTzGetDatum(looks[i].last_used_at);
		nulls[1] = looks[i].last_used_at == 0;
		values[2] = Int64GetDatum(looks[i].use_count);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		pfree(DatumGetPointer(values[0]));
	}
	if (looks != NULL)
		pfree(looks);
	return (Datum) 0;
}

/*
 * Return the looks at the keys that the caller sees, palloc'd, as
 * usage_look_all().  Shared memory does not know the owner of a key, so the
 * policies of api_keys choose the keys.
 */
static UsageLook *
look_at_own(int *count)
{
	MemoryContext caller = CurrentMemoryContext;
	UsageLook  *looks;

	*count = 0;
	SPI_connect();
	SPI_execute("SELECT key_id FROM rk_apikeys.api_keys", true, 0);
	looks = MemoryContextAllocHuge(caller, (SPI_processed + 1) * sizeof(UsageLook));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *key_id = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		CHECK_FOR_INTERRUPTS();
		if (usage_look(key_id, &looks[*count]))
			(*count)++;
	}
	SPI_finish();
	return looks;
}

/*
 * rk_apikeys._sees_key(key_id text) -> boolean
 *
 * Return whether the caller sees a key, as the policies of api_keys say.
 */
Datum
rk_apikeys_sees_key(PG_FUNCTION_ARGS)
{
	text	   *key_id = PG_GETARG_TEXT_PP(0);
	Viewer		viewer;

	PG_RETURN_BOOL(VARSIZE_ANY_EXHDR(key_id) == TOKEN_KEY_ID_LEN &&
				   find_viewer(&viewer) &&
				   finds_key(&viewer, text_to_cstring(key_id)));
}

/*
 * rk_apikeys._stats() of 0.1 and 0.2, whose verdicts had neither
 * environment_mismatch nor quota_exceeded.
 */
Datum
rk_apikeys_stats(PG_FUNCTION_ARGS)
{
	return stats_row(fcinfo, true);
}

/*
 * rk_apikeys._searched_key_id(search text) -> text
 *
 * Return the key id of the token or mask that a search consists of; NULL if the
 * search is neither.  Return the key id of an imported token only if the caller
 * may see the key.
 */
Datum
rk_apikeys_searched_key_id(PG_FUNCTION_ARGS)
{
	Datum		given = PG_GETARG_DATUM(0);
	text	   *search;
	text	   *volatile key_id = NULL;

	if (toast_raw_datum_size(given) - VARHDRSZ > SEARCH_MAX_LEN)
		PG_RETURN_NULL();
	search = PG_GETARG_TEXT_PP(0);
	PG_TRY();
	{
		key_id = find_searched(VARDATA_ANY(search), VARSIZE_ANY_EXHDR(search));
	}
	PG_FINALLY();
	{
		/* A detoasted copy of a token is ours, so we must wipe it. */
		if (PointerGetDatum(search) != given)
			explicit_bzero(VARDATA_ANY(search), VARSIZE_ANY_EXHDR(search));
	}
	PG_END_TRY();
	if (key_id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(key_id);
}

/* Return the same for the bytes of a search. */
static text *
find_searched(const char *s, size_t len)
{
	const StoredKey *key;
	const char *key_id;
	Viewer		viewer;

	for (; len > 0 && scanner_isspace(s[0]); len--)
		s++;
	while (len > 0 && scanner_isspace(s[len - 1]))
		len--;
	/* The viewer first, because it may cost the cache the key. */
	if (find_viewer(&viewer) && (key = verify_imported(s, len)) != NULL &&
		may_see(&viewer, key))
		return cstring_to_text(key->key_id);
	key_id = token_key_id(s, len);
	return key_id == NULL ? NULL : cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);
}

static bool
same_text(text *a, const char *b)
{
	return VARSIZE_ANY_EXHDR(a) == strlen(b) &&
		memcmp(VARDATA_ANY(a), b, strlen(b)) == 0;
}

/*
 * rk_apikeys._stats() -> the columns of the view stats
 *
 * Without shared memory all columns except preloaded are NULL.  Raise 42501 if a
 * principal is set, because the counters are of all tenants.
 */
Datum
rk_apikeys_stats_0_3(PG_FUNCTION_ARGS)
{
	return stats_row(fcinfo, false);
}

/*
 * rk_apikeys._limit_state(tenant text, limit_id uuid, family text, units bigint,
 *		rate_window interval, period text, reset_at timestamptz)
 *		-> (used, remaining, resets_at)
 *
 * Return what a limit has, of which the view limit_status has read the row.  All
 * columns are NULL if the caller may not see the tenant, or the family.
 */
Datum
rk_apikeys_limit_state(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[STATE_COLUMNS] = {0};
	bool		nulls[STATE_COLUMNS] = {true, true, true};
	LimitRow	row = {.reset_at = DT_NOBEGIN};
	UsageLevel	level;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != STATE_COLUMNS)
		elog(ERROR, "_limit_state returns another row than expected");
	/* Either the window or the period. */
	if (PG_ARGISNULL(0) || PG_ARGISNULL(3) || PG_ARGISNULL(4) == PG_ARGISNULL(5))
		PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
	row.tenant = PG_GETARG_TEXT_PP(0);
	if (!PG_ARGISNULL(1))
		row.limit_id = PG_GETARG_UUID_P(1)->data;
	if (!PG_ARGISNULL(2))
		row.family = text_to_cstring(PG_GETARG_TEXT_PP(2));
	row.units = Max(PG_GETARG_INT64(3), 1);
	if (!PG_ARGISNULL(4))
		row.rate_window = PG_GETARG_INTERVAL_P(4);
	else
		row.period = PG_GETARG_TEXT_PP(5);
	if (!PG_ARGISNULL(6))
		row.reset_at = PG_GETARG_TIMESTAMPTZ(6);
	if ((row.rate_window == NULL || limiter_window(row.rate_window) > 0) &&
		(row.period == NULL || VARSIZE_ANY_EXHDR(row.period) > 0) &&
		may_see_limit(&row))
	{
		limit_look(&row, GetCurrentTimestamp(), &level);
		values[0] = Int64GetDatum(level.used);
		values[1] = Int64GetDatum(level.remaining);
		values[2] = TimestampTzGetDatum(level.resets_at);
		memset(nulls, false, sizeof(nulls));
		nulls[2] = level.resets_at == DT_NOEND;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/*
 * Return whether the caller may see what a limit has.  A caller that does not see
 * all keys of the tenant sees only what families of keys have that it sees.
 */
static bool
may_see_limit(const LimitRow *row)
{
	static SPIPlanPtr plan = NULL;
	Viewer		viewer;
	Oid			type = TEXTOID;
	Datum		family;
	bool		found;

	if (!find_viewer(&viewer) ||
		(viewer.tenant != NULL && !same_text(row->tenant, viewer.tenant)))
		return false;
	if ((viewer.owner == NULL && viewer.environment == NULL) || row->family == NULL)
		return true;
	family = CStringGetTextDatum(row->family);
	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT FROM rk_apikeys.api_keys k WHERE k.key_id OPERATOR(pg_catalog.=) $1"
						   " OR (k.family OPERATOR(pg_catalog.=) $1 AND k.family OPERATOR(pg_catalog.<>) k.key_id)",
						   1, &type);
		SPI_keepplan(plan);
	}
	SPI_execute_plan(plan, &family, NULL, true, 1);
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/* Return the counters as a row; old: without those of verdicts since 0.3. */
static Datum
stats_row(FunctionCallInfo fcinfo, bool old)
{
	TupleDesc	desc;
	Datum		values[STATS_COLUMNS] = {0};
	bool		nulls[STATS_COLUMNS];
	int64		sums[STATS_ALL];
	UsageTotals totals;
	int			column = 0;

	principal_refuse();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != STATS_COLUMNS - (old ? 2 : 0))
		elog(ERROR, "_stats returns another row than expected");
	memset(nulls, !usage_is_shared(), sizeof(nulls));
	nulls[0] = false;
	values[column++] = BoolGetDatum(usage_is_preloaded());
	if (usage_is_shared())
	{
		stats_sum(sums);
		for (int i = 0; i < STATS_ALL; i++)
			if (!old || (i != VERDICT_ENVIRONMENT_MISMATCH && i != VERDICT_QUOTA_EXCEEDED))
				values[column++] = Int64GetDatum(sums[i]);
		usage_totals(&totals);
		values[column++] = Int64GetDatum(totals.tracked);
		values[column++] = Int64GetDatum(totals.max_tracked);
		values[column++] = Int64GetDatum(totals.pending);
		values[column++] = TimestampTzGetDatum(totals.last_flush_at);
		nulls[column - 1] = totals.last_flush_at == 0;
		values[column++] = Int64GetDatum(usage_lag(&totals));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* Set *viewer.  Return false if the caller may see no key. */
static bool
find_viewer(Viewer *viewer)
{
	if (!session_may_manage() || (viewer->tenant = session_tenant()) == NULL)
		return false;
	viewer->environment = session_environment();
	/* The principal's key may have died since the tenant was read. */
	if (principal_is_set() && viewer->environment == NULL)
		return false;
	viewer->owner = NULL;
	if (session_sees_own_keys() && (viewer->owner = caller_end_user()) == NULL)
		return false;
	if (session_sees_all_tenants())
		viewer->tenant = NULL;
	return true;
}

/* Return whether the viewer may see a key. */
static bool
may_see(const Viewer *viewer, const StoredKey *key)
{
	return (viewer->tenant == NULL || same_text(key->tenant, viewer->tenant)) &&
		(viewer->environment == NULL || same_text(key->environment, viewer->environment)) &&
		(viewer->owner == NULL ||
		 (key->owner != NULL && same_text(key->owner, viewer->owner)));
}

/* Return whether a key exists that the viewer may see. */
static bool
finds_key(const Viewer *viewer, const char *key_id)
{
	const StoredKey *key = cache_find(key_id);

	return key != NULL && may_see(viewer, key);
}

/*
 * Look at the key that an SQL function asks for.  Return false if shared memory
 * has nothing of the key, or the caller may not see it.
 */
static bool
look_for_caller(FunctionCallInfo fcinfo, UsageLook *look)
{
	text	   *key_id = PG_GETARG_TEXT_PP(0);
	Viewer		viewer;

	/* First whether there is an entry: most keys of a list have none. */
	if (VARSIZE_ANY_EXHDR(key_id) != TOKEN_KEY_ID_LEN ||
		!usage_look(VARDATA_ANY(key_id), look) ||
		!find_viewer(&viewer))
		return false;
	if (viewer.owner != NULL)
		return finds_key(&viewer, text_to_cstring(key_id));
	return (viewer.environment == NULL || strcmp(look->environment, viewer.environment) == 0) &&
		(viewer.tenant == NULL || usage_look_is_of(look, viewer.tenant));
}
