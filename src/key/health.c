/*
 * health.c
 *		What the view health asks that SQL cannot see.
 *
 * Trust: the answers are about the keys of all tenants, so a principal is
 * refused.  No role is granted pepper ids.  They are read as the owner, and only
 * the ids whose pepper is missing are returned.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/caller.h"
#include "base/contain.h"
#include "base/principal.h"
#include "base/settings.h"
#include "base/stats.h"
#include "base/store.h"
#include "compat.h"
#include "token/pepper.h"
#include "usage/usage.h"

#define HEALTH_COLUMNS 11
#define PEPPER_COLUMNS 3

static void load_peppers(void *arg);
static void find_missing(void *arg);

PG_FUNCTION_INFO_V1(rk_apikeys_health);
PG_FUNCTION_INFO_V1(rk_apikeys_missing_peppers);

/*
 * rk_apikeys._health() -> the state of this server, for the view health
 *
 * Without shared memory all columns except preloaded are NULL.
 */
Datum
rk_apikeys_health(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[HEALTH_COLUMNS] = {0};
	bool		nulls[HEALTH_COLUMNS];
	int64		sums[STATS_ALL];
	UsageTotals totals;
	UsageState	state;
	int			column = 0;

	principal_refuse();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != HEALTH_COLUMNS)
		elog(ERROR, "_health returns another row than expected");
	memset(nulls, !usage_is_shared(), sizeof(nulls));
	nulls[0] = false;
	values[column++] = BoolGetDatum(usage_is_preloaded());
	if (usage_is_shared())
	{
		stats_sum(sums);
		usage_totals(&totals);
		usage_state(&state);
		values[column++] = BoolGetDatum(state.has_launcher);
		values[column++] = BoolGetDatum(state.has_worker);
		values[column++] = BoolGetDatum(usage_goes_to_primary());
		values[column++] = BoolGetDatum(state.reaches_primary);
		values[column++] = Int64GetDatum(settings_usage_flush_interval);
		values[column++] = Int64GetDatum(usage_lag(&totals));
		values[column++] = Int64GetDatum(sums[VERDICT_LIMITER_UNAVAILABLE]);
		values[column++] = Int64GetDatum(sums[VERDICTS + STATS_OVERFLOW]);
		values[column++] = Int64GetDatum(totals.pending);
		values[column++] = Int64GetDatum(totals.max_tracked);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/*
 * rk_apikeys._missing_peppers() -> setof (pepper_id, problem, hint)
 *
 * Return the pepper ids of keys whose pepper is missing, with NULLs.  If the
 * pepper file cannot be used, return one row with the reason and a hint.
 */
Datum
rk_apikeys_missing_peppers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ErrorData  *error;

	principal_refuse();
	InitMaterializedSRF(fcinfo, 0);
	if (result->setDesc->natts != PEPPER_COLUMNS)
		elog(ERROR, "_missing_peppers returns another row than expected");
	error = contain_errors(load_peppers, NULL);
	if (error == NULL)
		caller_run_as_owner(store_table("api_keys", false), find_missing, result);
	else
	{
		Datum		values[PEPPER_COLUMNS] = {0};
		bool		nulls[PEPPER_COLUMNS] = {true, false, false};

		values[1] = CStringGetTextDatum(error->message);
		nulls[2] = error->hint == NULL;
		if (error->hint != NULL)
			values[2] = CStringGetTextDatum(error->hint);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		FreeErrorData(error);
	}
	return (Datum) 0;
}

/* ContainedWork: raise 58030 if the pepper file cannot be used. */
static void
load_peppers(void *arg)
{
	(void) pepper_current();
}

/* OwnerWork: add a row for each pepper id of keys whose pepper is missing. */
static void
find_missing(void *arg)
{
	ReturnSetInfo *result = arg;

	SPI_connect();
	SPI_execute("SELECT DISTINCT pepper_id::int FROM rk_apikeys.api_keys"
				" WHERE pepper_id IS NOT NULL", true, 0);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		Datum		values[PEPPER_COLUMNS] = {0};
		bool		nulls[PEPPER_COLUMNS] = {false, true, true};

		values[0] = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
								  1, &nulls[0]);
		if (!pepper_has(DatumGetInt32(values[0])))
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	SPI_finish();
}
