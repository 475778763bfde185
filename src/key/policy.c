/*
 * policy.c
 *		The policies that bind a key: which rows they are, and what they allow.
 *
 * All rows that match a key's tenant and environment bind the key, so the
 * strictest counts.  The triggers of guard.c call policy_check() for rows that
 * are made and for columns that change.  max_keys.c counts keys, and
 * disable_idle_keys() looks at max_idle.  verify reads no policy.
 *
 * The rows are read under the latest snapshot, once for a statement's keys of a
 * tenant and environment.  A table without a block costs a look at its size.
 *
 * Memory: what is kept for a statement lives in a context of its own.
 *
 * Trust: the rows are read past privileges and policies, because a policy binds
 * a key whoever makes the key.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "storage/bufmgr.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/settings.h"
#include "base/store.h"
#include "compat.h"
#include "key/policy.h"
#include "token/shown.h"

/* Columns of rk_apikeys.policies, in the order of its CREATE TABLE. */
enum PolicyColumn
{
	POLICY_TENANT = 1,
	POLICY_ENVIRONMENT,
	POLICY_MAX_LIFETIME,
	POLICY_MAX_IDLE,
	POLICY_MAX_KEYS,
	POLICY_ALLOWED_SCOPES,
	POLICY_REQUIRE_CIDRS,
	POLICY_REQUIRE_OWNER,
	POLICY_COLUMNS = POLICY_REQUIRE_OWNER
};

static const Oid types[POLICY_COLUMNS] = {
	TEXTOID, TEXTOID, INTERVALOID, INTERVALOID, INT4OID, TEXTARRAYOID, BOOLOID, BOOLOID
};

/* What policy_find() found last for policy_check(), and when. */
typedef struct Kept
{
	LocalTransactionId transaction; /* invalid: nothing is kept */
	SubTransactionId subtransaction;
	CommandId	command;
	text	   *tenant;
	text	   *environment;
	Policy		policies[POLICY_MAX];
	int			count;
} Kept;

static Kept kept = {0};
static MemoryContext kept_context = NULL;

static Relation open_policies(void);
static void keep_policies(text *tenant, text *environment);
static int	read_policies(Relation rel, Snapshot snapshot, text *tenant,
						  text *only_tenant, text *environment,
						  Policy *policies, int count);
static bool parse_policy(HeapTuple row, TupleDesc desc, text *tenant,
						 text *environment, Policy *policy);
static TimestampTz end_by(const Policy *policy, TimestampTz created_at);
static void check_end(const Policy *policies, int count, TimestampTz expires_at,
					  TimestampTz created_at);
static void check_scopes(const Policy *policy, ArrayType *scopes);

PG_FUNCTION_INFO_V1(rk_apikeys_disable_idle_keys);

/*
 * Return the table of policies, locked; NULL if it is missing or has no block.
 * SQL of an earlier release has no such table, or one that a DBA has made.
 */
static Relation
open_policies(void)
{
	Oid			table = store_table("policies", true);
	Relation	rel = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;
	bool		ours;

	if (rel == NULL)
		return NULL;
	ours = rel->rd_rel->relkind == RELKIND_RELATION &&
		RelationGetDescr(rel)->natts >= POLICY_COLUMNS &&
		RelationGetNumberOfBlocks(rel) > 0;
	for (int i = 0; ours && i < POLICY_COLUMNS; i++)
		ours = TupleDescAttr(RelationGetDescr(rel), i)->atttypid == types[i];
	if (ours)
		return rel;
	table_close(rel, AccessShareLock);
	return NULL;
}

/* Return whether there may be a policy. */
bool
policy_exists(void)
{
	Relation	rel = open_policies();

	if (rel == NULL)
		return false;
	table_close(rel, AccessShareLock);
	return true;
}

/*
 * Read the policies of a tenant's keys in an environment that are committed now
 * or made by this transaction.  Return how many there are.  The caller has an
 * array of POLICY_MAX.  Its pointers live in the caller's memory context.
 */
int
policy_find(text *tenant, text *environment, Policy *policies)
{
	Relation	rel = open_policies();
	Snapshot	snapshot;
	int			count;

	if (rel == NULL)
		return 0;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	count = read_policies(rel, snapshot, tenant, tenant, environment, policies, 0);
	count = read_policies(rel, snapshot, tenant, NULL, environment, policies, count);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return count;
}

/*
 * Keep the policies of a tenant's keys in an environment until the command ends.
 * After a rollback that takes back a policy, another subtransaction is current.
 */
static void
keep_policies(text *tenant, text *environment)
{
	MemoryContext caller;

	if (kept.transaction == COMPAT_LXID &&
		kept.subtransaction == GetCurrentSubTransactionId() &&
		kept.command == GetCurrentCommandId(false) &&
		store_same_text(kept.tenant, tenant) && store_same_text(kept.environment, environment))
		return;
	kept.transaction = InvalidLocalTransactionId;
	if (kept_context == NULL)
		kept_context = AllocSetContextCreate(TopMemoryContext, "rk_apikeys policies",
											 ALLOCSET_SMALL_SIZES);
	MemoryContextReset(kept_context);
	caller = MemoryContextSwitchTo(kept_context);
	kept.tenant = DatumGetTextPCopy(PointerGetDatum(tenant));
	kept.environment = DatumGetTextPCopy(PointerGetDatum(environment));
	kept.count = policy_find(tenant, environment, kept.policies);
	MemoryContextSwitchTo(caller);
	kept.subtransaction = GetCurrentSubTransactionId();
	kept.command = GetCurrentCommandId(false);
	kept.transaction = COMPAT_LXID;
}

/*
 * Add the matching policies whose tenant is only_tenant, or NULL, to the array.
 * Return the new number of its elements.
 */
static int
read_policies(Relation rel, Snapshot snapshot, text *tenant, text *only_tenant,
			  text *environment, Policy *policies, int count)
{
	Oid			index = store_table("policies_tenant_environment_key", true);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	row;

	if (only_tenant == NULL)
		ScanKeyEntryInitialize(&key, SK_ISNULL | SK_SEARCHNULL, POLICY_TENANT,
							   InvalidStrategy, InvalidOid, InvalidOid,
							   InvalidOid, (Datum) 0);
	else
		ScanKeyEntryInitialize(&key, 0, POLICY_TENANT, BTEqualStrategyNumber,
							   InvalidOid,
							   TupleDescAttr(RelationGetDescr(rel), POLICY_TENANT - 1)->attcollation,
							   F_TEXTEQ, PointerGetDatum(only_tenant));
	/* A DBA may have dropped the index.  A scan of the table has no key for NULL. */
	scan = systable_beginscan(rel, index, OidIsValid(index), snapshot,
							  OidIsValid(index) ? 1 : 0, &key);
	while (count < POLICY_MAX && HeapTupleIsValid(row = systable_getnext(scan)))
		if (parse_policy(row, RelationGetDescr(rel), only_tenant, environment,
						 &policies[count]))
			count++;
	systable_endscan(scan);
	return count;
}

/*
 * Return whether a row is a policy with that tenant, or NULL, which binds the
 * environment.  If so, parse a copy of the row.
 */
static bool
parse_policy(HeapTuple row, TupleDesc desc, text *tenant, text *environment,
			 Policy *policy)
{
	HeapTuple	copy = heap_copytuple(row);
	Datum		values[POLICY_COLUMNS];
	bool		nulls[POLICY_COLUMNS];

#define POINTER(column, parse) \
	(nulls[(column) - 1] ? NULL : parse(values[(column) - 1]))
	for (int i = 0; i < POLICY_COLUMNS; i++)
		values[i] = heap_getattr(copy, i + 1, desc, &nulls[i]);
	policy->tenant = POINTER(POLICY_TENANT, DatumGetTextPP);
	policy->environment = POINTER(POLICY_ENVIRONMENT, DatumGetTextPP);
	if ((policy->tenant == NULL) != (tenant == NULL) ||
		(tenant != NULL && !store_same_text(policy->tenant, tenant)) ||
		(policy->environment != NULL && !store_same_text(policy->environment, environment)))
		return false;
	policy->max_lifetime = POINTER(POLICY_MAX_LIFETIME, DatumGetIntervalP);
	policy->max_keys = nulls[POLICY_MAX_KEYS - 1] ? -1 :
		DatumGetInt32(values[POLICY_MAX_KEYS - 1]);
	policy->allowed_scopes = POINTER(POLICY_ALLOWED_SCOPES, DatumGetArrayTypeP);
	policy->require_cidrs = DatumGetBool(values[POLICY_REQUIRE_CIDRS - 1]);
	policy->require_owner = DatumGetBool(values[POLICY_REQUIRE_OWNER - 1]);
#undef POINTER
	return true;
}

/* Return which policy it is, in words for a message, palloc'd. */
const char *
policy_words(const Policy *policy)
{
	const char *tenant = policy->tenant == NULL ? "every tenant" :
		psprintf("tenant \"%s\"", shown_text(policy->tenant));

	if (policy->environment == NULL)
		return psprintf("the policy for %s", tenant);
	return psprintf("the policy for %s in environment \"%s\"", tenant,
					shown_text(policy->environment));
}

/* Return the latest end that a policy allows a key of that time. */
static TimestampTz
end_by(const Policy *policy, TimestampTz created_at)
{
	if (policy->max_lifetime == NULL)
		return DT_NOEND;
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(created_at),
												   IntervalPGetDatum(policy->max_lifetime)));
}

/*
 * Return the latest end that the policies allow a key of that time; DT_NOEND if
 * there is no limit.
 */
TimestampTz
policy_latest_end(text *tenant, text *environment, TimestampTz created_at)
{
	Policy		policies[POLICY_MAX];
	int			count = policy_find(tenant, environment, policies);
	TimestampTz end = DT_NOEND;

	for (int i = 0; i < count; i++)
		end = Min(end, end_by(&policies[i], created_at));
	return end;
}

/*
 * Check the changed settings of a key, after check_settings().  Raise 23514 if a
 * policy refuses one.  A key that the owner moves to another tenant is not
 * checked, so that a tenant can get another name.
 */
void
policy_check(const Datum *values, const bool *nulls, const bool *changed,
			 TimestampTz created_at)
{
#define VALUE(column) (values[(column) - 1])
#define ISNULL(column) (nulls[(column) - 1])
#define CHANGED(column) (changed[(column) - 1])
	if (!CHANGED(KEY_EXPIRES_AT) && !CHANGED(KEY_SCOPES) &&
		!CHANGED(KEY_ALLOWED_CIDRS) && !CHANGED(KEY_OWNER))
		return;
	keep_policies(DatumGetTextPP(VALUE(KEY_TENANT)),
				  DatumGetTextPP(VALUE(KEY_ENVIRONMENT)));
	if (kept.count > 0 && CHANGED(KEY_EXPIRES_AT))
		check_end(kept.policies, kept.count, ISNULL(KEY_EXPIRES_AT) ? DT_NOEND :
				  DatumGetTimestampTz(VALUE(KEY_EXPIRES_AT)), created_at);
	for (int i = 0; i < kept.count; i++)
	{
		const Policy *policy = &kept.policies[i];

		if (CHANGED(KEY_SCOPES) && policy->allowed_scopes != NULL)
			check_scopes(policy, DatumGetArrayTypeP(VALUE(KEY_SCOPES)));
		if (CHANGED(KEY_ALLOWED_CIDRS) && policy->require_cidrs &&
			ISNULL(KEY_ALLOWED_CIDRS))
			ereport(ERROR,
					(errcode(ERRCODE_CHECK_VIOLATION),
					 errmsg("allowed_cidrs of an API key is required"),
					 errhint("List networks in allowed_cidrs, because %s has require_cidrs.",
							 policy_words(policy))));
		if (CHANGED(KEY_OWNER) && policy->require_owner && ISNULL(KEY_OWNER))
			ereport(ERROR,
					(errcode(ERRCODE_CHECK_VIOLATION),
					 errmsg("owner of an API key is required"),
					 errhint("Name an owner, because %s has require_owner.",
							 policy_words(policy))));
	}
#undef VALUE
#undef ISNULL
#undef CHANGED
}

/* Raise 23514 if the end of a key is later than the strictest max_lifetime. */
static void
check_end(const Policy *policies, int count, TimestampTz expires_at,
		  TimestampTz created_at)
{
	const Policy *strictest = &policies[0];
	TimestampTz latest;

	for (int i = 1; i < count; i++)
		if (end_by(&policies[i], created_at) < end_by(strictest, created_at))
			strictest = &policies[i];
	latest = end_by(strictest, created_at);
	if (expires_at > latest)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 expires_at == DT_NOEND ?
				 errmsg("expires_at of an API key is required") :
				 errmsg("expires_at of an API key is too far in the future: %s",
						timestamptz_to_str(expires_at)),
				 errhint("Set expires_at to %s or earlier, because %s has max_lifetime %s.",
						 pstrdup(timestamptz_to_str(latest)), policy_words(strictest),
						 DatumGetCString(DirectFunctionCall1(interval_out,
															 IntervalPGetDatum(strictest->max_lifetime))))));
}

/* Raise 23514 unless the policy's scopes grant each scope of a key. */
static void
check_scopes(const Policy *policy, ArrayType *scopes)
{
	Datum	   *elements;
	int			count;

	deconstruct_array(scopes, TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		Datum		list;

		if (grant_scope(policy->allowed_scopes, DatumGetTextPP(elements[i])))
			continue;
		list = OidFunctionCall2(F_ARRAY_TO_STRING_ANYARRAY_TEXT,
								PointerGetDatum(policy->allowed_scopes),
								CStringGetTextDatum(" "));
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("scope \"%s\" of an API key is not allowed",
						shown_text(DatumGetTextPP(elements[i]))),
				 errhint("Give scopes within \"%s\", because %s has these allowed_scopes.",
						 shown_text(DatumGetTextPP(list)), policy_words(policy))));
	}
}

/*
 * rk_apikeys.disable_idle_keys() -> bigint
 *
 * Disable the keys that were not used for the max_idle of a policy, and return
 * their number.  Raise 55000 if this session records no use, because then no key
 * would seem to be used.
 *
 * Locking: the rows of the keys.  A row that another transaction has locked is
 * left for the next call, so two calls cannot wait for each other.
 */
Datum
rk_apikeys_disable_idle_keys(PG_FUNCTION_ARGS)
{
	uint64		count;

	principal_refuse();
	if (!settings_track_usage)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the use of API keys is not recorded"),
				 errhint("Set rk_apikeys.track_usage to on, and wait for the longest max_idle.")));
	SPI_connect();
	count = now_execute(NULL, "WITH idle AS MATERIALIZED"
						" (SELECT k.key_id FROM rk_apikeys.api_keys k"
						"   WHERE k.enabled AND k.key_id IN"
						"    (SELECT n.key_id FROM rk_apikeys.noncompliant_keys n"
						"      WHERE n.rule = 'max_idle')"
						"   FOR NO KEY UPDATE OF k SKIP LOCKED)"
						" UPDATE rk_apikeys.api_keys k SET enabled = false"
						"  FROM idle WHERE k.key_id = idle.key_id",
						0, NULL, NULL);
	SPI_finish();
	PG_RETURN_INT64((int64) count);
}
