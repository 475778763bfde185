/*
 * page.c
 *		A page of list_keys(), from a saved plan.
 *
 * list_keys() writes a query for the sort and the filters of its call.  To plan
 * the query takes longer than to run it, so the plans are saved, by the text of
 * their query.  PostgreSQL replans a saved plan if the role, search_path or a
 * table has changed.
 *
 * Trust: the query runs with the caller's rights, so a caller gains nothing.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "compat.h"

/*
 * Saved plans per backend.  For one role, page size and set of filters list_keys()
 * can write at most 9 sorts * 2 directions * 5 places to begin = 90 queries.  A
 * plan above the limit is made for one call.  No saved plan is freed, because a
 * query can call _page() again while its plan runs.
 */
#define PLANS_MAX 512
#define QUERY_MAX_LEN 4096
#define PAGE_ARGS 12
#define PAGE_ARGS_0_2 7			/* without owner and what follows it */

static Oid	arg_types[PAGE_ARGS] = {
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID,
	TEXTOID, TEXTOID, JSONBOID, TEXTARRAYOID, TEXTARRAYOID
};

typedef struct PagePlan
{
	char		query[QUERY_MAX_LEN];	/* hash key */
	SPIPlanPtr	plan;
} PagePlan;

/* The saved plans of this backend, by PagePlan.query. */
static HTAB *plans = NULL;

static Datum run_page(FunctionCallInfo fcinfo, int nargs);
static SPIPlanPtr find_plan(const char *query);

PG_FUNCTION_INFO_V1(rk_apikeys_page);
PG_FUNCTION_INFO_V1(rk_apikeys_page_0_3);

/*
 * rk_apikeys._page(query text, search text, status text, environment text,
 *		start_value text, start_key text, sort_by text, descending boolean,
 *		owner text, tenant text, metadata jsonb, scopes text[], statuses text[])
 *		-> setof rk_apikeys.listed_key
 *
 * Return the rows of the query.  The other arguments are its parameters $1 to
 * $12.  Raise 22004 if the query is NULL, 54000 if the query is too long, 0A000
 * if it is not a SELECT, and 42804 if its columns are not those of listed_key.
 */
Datum
rk_apikeys_page_0_3(PG_FUNCTION_ARGS)
{
	return run_page(fcinfo, PAGE_ARGS);
}

/* The same for SQL of 0.1 and 0.2. */
Datum
rk_apikeys_page(PG_FUNCTION_ARGS)
{
	return run_page(fcinfo, PAGE_ARGS_0_2);
}

static Datum
run_page(FunctionCallInfo fcinfo, int nargs)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *query;
	SPIExecuteOptions options = {.read_only = true};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("query of a page cannot be null")));
	query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	options.params = makeParamList(PAGE_ARGS);
	for (int i = 0; i < PAGE_ARGS; i++)
	{
		ParamExternData *param = &options.params->params[i];

		param->isnull = i >= nargs || PG_ARGISNULL(i + 1);
		param->value = param->isnull ? (Datum) 0 : PG_GETARG_DATUM(i + 1);
		param->pflags = PARAM_FLAG_CONST;
		param->ptype = arg_types[i];
	}
	InitMaterializedSRF(fcinfo, 0);

	/* The rows go into the result as they come. */
	options.dest = CreateTuplestoreDestReceiver();
	SetTuplestoreDestReceiverParams(options.dest, result->setResult,
									CurrentMemoryContext, false, result->setDesc,
									gettext_noop("query of a page does not return rk_apikeys.listed_key"));
	SPI_connect();
	if (SPI_execute_plan_extended(find_plan(query), &options) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("query of a page is not a SELECT")));
	SPI_finish();
	options.dest->rDestroy(options.dest);
	return (Datum) 0;
}

/*
 * Return the plan of a query, saved by an earlier call or made now.  Raise
 * 54000 if the query is too long.  Runs between SPI_connect() and SPI_finish().
 */
static SPIPlanPtr
find_plan(const char *query)
{
	PagePlan   *found;
	SPIPlanPtr	plan;

	if (strlen(query) >= QUERY_MAX_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("query of a page is too long")));
	if (plans == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = QUERY_MAX_LEN;
		ctl.entrysize = sizeof(PagePlan);
		plans = hash_create("rk_apikeys pages", 16, &ctl,
							HASH_ELEM | HASH_STRINGS);
	}
	found = hash_search(plans, query, HASH_FIND, NULL);
	if (found != NULL)
		return found->plan;

	plan = SPI_prepare_cursor(query, PAGE_ARGS, arg_types, CURSOR_OPT_PARALLEL_OK);
	if (plan == NULL)
		elog(ERROR, "could not plan a page: %s",
			 SPI_result_code_string(SPI_result));
	if (hash_get_num_entries(plans) >= PLANS_MAX)
		return plan;			/* SPI_finish frees it */
	/*
	 * Keep the plan before the entry is made, because an error in between must
	 * not leave an entry without a plan.
	 */
	SPI_keepplan(plan);
	found = hash_search(plans, query, HASH_ENTER, NULL);
	found->plan = plan;
	return plan;
}
