/*
 * max_keys.c
 *		The statement triggers that count a tenant's keys, for max_keys of
 *		policies.
 *
 * A key counts until it is revoked, rotated or expired.  The keys are counted
 * after the statement, so that a statement which ends keys and makes others is
 * judged by its result.  Rows that are restored or copied are not checked.  They
 * are recognized by their created_at, as in audit.c.
 *
 * The successor that rotate_key() makes does not count as a new key, because the
 * old key ends by it.  So a rotation takes no lock, and a policy that was made
 * stricter refuses none.  Nor does a later end of a key that is good.
 *
 * Locking: an exclusive lock per tenant until the transaction ends, only if a
 * policy has max_keys.  Any role could take an advisory lock, so the lock is of
 * an object of the class policies, which no SQL can name.  Two transactions that
 * give a tenant keys wait for each other, and each counts after its lock, under
 * a new snapshot.  A statement takes its locks in one order.
 *
 * A key may expire while a transaction that has not ended rotates it, or gives it
 * a later end.  So an expired key counts while another transaction updates its
 * row.  A transaction that updates the row later finds that the key has expired,
 * and counts itself.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/store.h"
#include "compat.h"
#include "key/guard.h"
#include "key/max_keys.h"
#include "key/policy.h"
#include "token/shown.h"

/* A tenant and an environment that a statement may have given more keys. */
typedef struct Place
{
	text	   *tenant;
	text	   *environment;
	uint32		hash;			/* of the tenant: names its lock */
} Place;

typedef struct Places
{
	Place	   *places;
	int			count;
	int			size;
} Places;

static TupleTableSlot *make_slot(TriggerData *trigger);
static void start_reading(Tuplestorestate *rows);
static void find_made(TriggerData *trigger, Places *places);
static void find_changed(TriggerData *trigger, Places *places);
static void add_place(Places *places, TupleTableSlot *slot);
static bool column(TupleTableSlot *slot, int column, Datum *value);
static bool counts(TupleTableSlot *slot, TimestampTz now);
static int	compare_places(const void *a, const void *b);
static bool is_updated(SysScanDesc scan, HeapTuple row);
static void check_place(Relation rel, Snapshot snapshot, const Place *place,
						const Policy *policies, int count);

PG_FUNCTION_INFO_V1(rk_apikeys_keys_max_keys);

/*
 * api_keys_max_keys_insert and _update, FOR EACH STATEMENT.  Raise 23514 if a
 * tenant has more keys than max_keys of a policy.
 */
Datum
rk_apikeys_keys_max_keys(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		insert = !CALLED_AS_TRIGGER(fcinfo) ||
		TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	Places		places = {0};
	Policy	  (*policies)[POLICY_MAX];
	int		   *bound_by;
	Snapshot	snapshot;

	trigger = guard_trigger(fcinfo, insert ? "api_keys_max_keys_insert" :
							"api_keys_max_keys_update");
	if (!policy_exists())
		return PointerGetDatum(NULL);
	if (insert)
		find_made(trigger, &places);
	else
		find_changed(trigger, &places);
	if (places.count == 0)
		return PointerGetDatum(NULL);

	qsort(places.places, places.count, sizeof(Place), compare_places);
	places.count = qunique(places.places, places.count, sizeof(Place), compare_places);
	policies = palloc(places.count * sizeof(*policies));
	bound_by = palloc0(places.count * sizeof(int));
	for (int i = 0; i < places.count; i++)
	{
		Place	   *place = &places.places[i];
		int			all = policy_find(place->tenant, place->environment, policies[i]);

		CHECK_FOR_INTERRUPTS();
		for (int j = 0; j < all; j++)
			if (policies[i][j].max_keys >= 0)
				policies[i][bound_by[i]++] = policies[i][j];
		if (bound_by[i] > 0)
			max_keys_lock("policies", place->hash);
	}

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < places.count; i++)
		if (bound_by[i] > 0)
			check_place(trigger->tg_relation, snapshot, &places.places[i],
						policies[i], bound_by[i]);
	UnregisterSnapshot(snapshot);
	return PointerGetDatum(NULL);
}

static TupleTableSlot *
make_slot(TriggerData *trigger)
{
	return MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation),
									&TTSOpsMinimalTuple);
}

/* Read the rows of a transition table from the first, beside other triggers. */
static void
start_reading(Tuplestorestate *rows)
{
	tuplestore_select_read_pointer(rows,
								   tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND));
	tuplestore_rescan(rows);
}

/* Add the places of the keys that a statement has made. */
static void
find_made(TriggerData *trigger, Places *places)
{
	TupleTableSlot *slot = make_slot(trigger);
	TimestampTz now = GetCurrentTimestamp();
	Datum		value;

	start_reading(trigger->tg_newtable);
	while (tuplestore_gettupleslot(trigger->tg_newtable, true, false, slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (!column(slot, KEY_CREATED_AT, &value) ||
			DatumGetTimestampTz(value) != GetCurrentTransactionStartTimestamp())
			continue;
		if (guard_rotation.successor[0] != '\0' && guard_rotation.old_end > now &&
			column(slot, KEY_KEY_ID, &value) &&
			strcmp(TextDatumGetCString(value), guard_rotation.successor) == 0)
			continue;
		if (counts(slot, now))
			add_place(places, slot);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Add the places of the keys that a statement has enabled, or made count again.
 * The rows of both tables have the same order.  A key that the owner moves to
 * another tenant is not checked, so that a tenant can get another name.
 */
static void
find_changed(TriggerData *trigger, Places *places)
{
	TupleTableSlot *old = make_slot(trigger);
	TupleTableSlot *new = make_slot(trigger);
	TimestampTz now = GetCurrentTimestamp();

	start_reading(trigger->tg_oldtable);
	start_reading(trigger->tg_newtable);
	while (tuplestore_gettupleslot(trigger->tg_newtable, true, false, new) &&
		   tuplestore_gettupleslot(trigger->tg_oldtable, true, false, old))
	{
		Datum		was_enabled;
		Datum		enabled;

		CHECK_FOR_INTERRUPTS();
		if (counts(new, now) &&
			(!counts(old, now) ||
			 (column(old, KEY_ENABLED, &was_enabled) && !DatumGetBool(was_enabled) &&
			  column(new, KEY_ENABLED, &enabled) && DatumGetBool(enabled))))
			add_place(places, new);
	}
	ExecDropSingleTupleTableSlot(old);
	ExecDropSingleTupleTableSlot(new);
}

/* Add the place of a row, unless the last place is the same. */
static void
add_place(Places *places, TupleTableSlot *slot)
{
	Datum		tenant;
	Datum		environment;
	Place	   *place = places->places + places->count - 1;

	if (!column(slot, KEY_TENANT, &tenant) || !column(slot, KEY_ENVIRONMENT, &environment))
		return;
	if (places->count > 0 && store_same_text(DatumGetTextPP(tenant), place->tenant) &&
		store_same_text(DatumGetTextPP(environment), place->environment))
		return;
	if (places->count == places->size)
	{
		places->size = Max(8, 2 * places->size);
		places->places = places->places == NULL ?
			palloc(places->size * sizeof(Place)) :
			repalloc_huge(places->places, places->size * sizeof(Place));
	}
	place = &places->places[places->count++];
	/* The next row overwrites the slot. */
	place->tenant = DatumGetTextPCopy(tenant);
	place->environment = DatumGetTextPCopy(environment);
	place->hash = max_keys_hash(place->tenant);
}

/* Set *value to a column of a row.  Return whether it is not NULL. */
static bool
column(TupleTableSlot *slot, int column, Datum *value)
{
	bool		isnull;

	*value = slot_getattr(slot, column, &isnull);
	return !isnull;
}

/* Return whether a key counts: it is not revoked, rotated or expired. */
static bool
counts(TupleTableSlot *slot, TimestampTz now)
{
	Datum		value;

	return !column(slot, KEY_REVOKED_AT, &value) &&
		!column(slot, KEY_GRACE_UNTIL, &value) &&
		(!column(slot, KEY_EXPIRES_AT, &value) || DatumGetTimestampTz(value) > now);
}

static int
compare_texts(text *a, text *b)
{
	int			difference = memcmp(VARDATA_ANY(a), VARDATA_ANY(b),
									Min(VARSIZE_ANY_EXHDR(a), VARSIZE_ANY_EXHDR(b)));

	return difference != 0 ? difference :
		(int) VARSIZE_ANY_EXHDR(a) - (int) VARSIZE_ANY_EXHDR(b);
}

/* Order by the lock, then put equal places together. */
static int
compare_places(const void *a, const void *b)
{
	const Place *one = a;
	const Place *other = b;
	int			difference;

	if (one->hash != other->hash)
		return one->hash < other->hash ? -1 : 1;
	difference = compare_texts(one->tenant, other->tenant);
	return difference != 0 ? difference :
		compare_texts(one->environment, other->environment);
}

/* Return the part of a tenant's lock that stands for the tenant. */
uint32
max_keys_hash(text *tenant)
{
	return hash_bytes((unsigned char *) VARDATA_ANY(tenant), VARSIZE_ANY_EXHDR(tenant));
}

/*
 * Lock a tenant's number of rows, which a table decides on or has, until the
 * transaction ends.  A caller with several tenants locks them by their hashes, in
 * ascending order.
 */
void
max_keys_lock(const char *table, uint32 hash)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, store_table(table, false), hash, 0);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * Return whether another transaction updates a row that the scan has returned,
 * or has updated it since the scan's snapshot.
 */
static bool
is_updated(SysScanDesc scan, HeapTuple row)
{
	Buffer		buffer = ((BufferHeapTupleTableSlot *) scan->slot)->buffer;
	TransactionId xid = InvalidTransactionId;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	if ((row->t_data->t_infomask & HEAP_XMAX_INVALID) == 0 &&
		!HEAP_XMAX_IS_LOCKED_ONLY(row->t_data->t_infomask) &&
		!ItemPointerEquals(&row->t_self, &row->t_data->t_ctid))
		xid = HeapTupleHeaderGetUpdateXid(row->t_data);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return TransactionIdIsValid(xid) &&
		(TransactionIdIsInProgress(xid) || TransactionIdDidCommit(xid));
}

/*
 * Count the keys of a place, and raise 23514 if they are more than max_keys of
 * one of the policies.
 */
static void
check_place(Relation rel, Snapshot snapshot, const Place *place,
			const Policy *policies, int count)
{
	/* Keys that were made together lie together. */
	Oid			index = store_table("api_keys_tenant_created", true);
	TupleDesc	desc = RelationGetDescr(rel);
	TimestampTz now = GetCurrentTimestamp();
	int			keys[POLICY_MAX] = {0};
	const Policy *broken = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	row;

	ScanKeyEntryInitialize(&key, 0, KEY_TENANT, BTEqualStrategyNumber, InvalidOid,
						   TupleDescAttr(desc, KEY_TENANT - 1)->attcollation,
						   F_TEXTEQ, PointerGetDatum(place->tenant));
	scan = systable_beginscan(rel, index, OidIsValid(index), snapshot, 1, &key);
	while (broken == NULL && HeapTupleIsValid(row = systable_getnext(scan)))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		/* Most keys are told by their NULLs alone. */
		if (!heap_attisnull(row, KEY_REVOKED_AT, desc) ||
			!heap_attisnull(row, KEY_GRACE_UNTIL, desc) ||
			(!heap_attisnull(row, KEY_EXPIRES_AT, desc) &&
			 DatumGetTimestampTz(heap_getattr(row, KEY_EXPIRES_AT, desc, &isnull)) <= now &&
			 !is_updated(scan, row)))
			continue;
		for (int i = 0; i < count && broken == NULL; i++)
			if ((policies[i].environment == NULL ||
				 store_same_text(DatumGetTextPP(heap_getattr(row, KEY_ENVIRONMENT, desc, &isnull)),
						   place->environment)) &&
				++keys[i] > policies[i].max_keys)
				broken = &policies[i];
	}
	systable_endscan(scan);
	if (broken != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("too many API keys of tenant \"%s\"", shown_text(place->tenant)),
				 errhint("End another key first, because %s has max_keys %d.",
						 policy_words(broken), broken->max_keys)));
}
